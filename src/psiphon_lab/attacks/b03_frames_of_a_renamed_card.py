# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""B03: raw frames on a network card that was just renamed."""

from __future__ import annotations

from psiphon_lab.addresses import LAN_A
from psiphon_lab.attacks.a08b_wire_renamed import OTHER, rename
from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.model import Actor, Mode
from psiphon_lab.leaktest.trial import Trial
from psiphon_lab.sending import fire_frame


def run(trial: Trial) -> None:
    """Rename the card, send raw frames from its first moment under the new name, then rename it back."""
    rename(trial, LAN_A.interface, OTHER)
    for family in (4, 6):
        fire_frame(trial, f"frame ipv{family}", family, OTHER, seconds=0.3)
    trial.settle()
    rename(trial, OTHER, LAN_A.interface)


ATTACK = Attack(
    id="B03",
    name="raw frames on a renamed card",
    reference="since Linux 6.16 a netdev hook belongs to a name, not to a device",
    summary="Root renames the network card and writes raw frames to it at once, before the service has seen the new "
    "name, or while no service runs.",
    actors=(Actor.ROOT,),
    recognised="by source port or a token in the payload",
    control="the same frames without the lock",
    run=run,
    disturbs=True,
    out_of_reach="it takes root, and the kernel removes the rule from the card together with its name. Once the "
    "service has set its filter in the card's traffic control, nothing leaves through the card until it has another "
    "guard; between boot and then there is no filter",
    not_applicable={Mode.TRANSITION: "this state unplugs the cable again and again, which overlaps with the renaming"},
)
