# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A08b: the network card is renamed."""

from __future__ import annotations

from psiphon_lab.addresses import LAN_A
from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.model import Actor, Mode
from psiphon_lab.leaktest.trial import Trial
from psiphon_lab.sending import volley

OTHER = "wan77"
SECONDS = 0.6


def rename(trial: Trial, old: str, new: str) -> None:
    """Rename a card, and restore the addresses and routes that it loses by that."""
    for argv in (["set", old, "down"], ["set", old, "name", new], ["set", new, "up"]):
        trial.run("ip", "link", *argv)
    trial.run("ip", "-6", "addr", "add", f"{LAN_A.client6}/{LAN_A.prefix6}", "dev", new, "nodad")
    trial.run("ip", "route", "add", "default", "via", LAN_A.router4, "dev", new, "metric", "100")
    trial.run("ip", "-6", "route", "add", "default", "via", LAN_A.router6, "dev", new, "metric", "100")


def run(trial: Trial) -> None:
    """Rename the card while programs send, then rename it back."""
    volley(trial, "meanwhile", seconds=SECONDS, bound=False)
    trial.wait(0.05)
    rename(trial, LAN_A.interface, OTHER)
    trial.settle()
    rename(trial, OTHER, LAN_A.interface)


ATTACK = Attack(
    id="A08b",
    name="network card renamed",
    reference="rules that name interfaces; udev renames cards at every boot",
    summary="The network card gets another name while programs are sending: rules that were made for the old name no "
    "longer match.",
    actors=(Actor.ROOT, Actor.USER),
    recognised="by source port or a token in the payload",
    control="the same packets on the renamed card without the lock",
    run=run,
    disturbs=True,
    not_applicable={Mode.TRANSITION: "this state unplugs the cable again and again, which overlaps with the renaming"},
)
