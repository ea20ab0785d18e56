# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A16: a second interface, a flapping link, a new address."""

from __future__ import annotations

from psiphon_lab.addresses import LAN_A, LAN_B
from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.model import Actor, Mode
from psiphon_lab.leaktest.trial import Trial
from psiphon_lab.probe import TARGETS, UDP
from psiphon_lab.sending import BOTH, ECHO, fire_frame, probe, restore_uplink, volley

SECONDS = 1.2


def run(trial: Trial) -> None:
    """Plug in a second interface with a better route, let the first flap and get another address; send meanwhile."""
    world = trial.testbed.world
    volley(trial, "meanwhile", seconds=SECONDS)
    for family in (4, 6):
        for by in BOTH:
            trial.fire(probe, by=by, family=family, name=f"second interface ipv{family} {by}", kind=UDP, port=ECHO,
                       target=TARGETS["internet"][family], interface=LAN_B.interface, seconds=SECONDS)  # fmt: skip
        fire_frame(trial, f"frame of the second interface ipv{family}", family, LAN_B.interface, seconds=SECONDS)
    trial.wait(0.1)
    if trial.mode is not Mode.CONTROL:
        world.plug_b()
        trial.say("provider B is plugged in, with a better route")
        trial.cleanups.callback(world.unplug_b)
        trial.wait(0.25)
    world.set_carrier(LAN_A, up=False)
    trial.wait(0.05)
    world.set_carrier(LAN_A, up=True)
    restore_uplink(trial)
    trial.say("provider A's link flapped")
    trial.wait(0.1)
    trial.run("ip", "addr", "add", "192.0.2.99/25", "dev", LAN_A.interface)
    trial.undo("ip", "addr", "del", "192.0.2.99/25", "dev", LAN_A.interface)
    trial.run("ip", "-6", "addr", "add", "2001:db8:a::99/64", "dev", LAN_A.interface, "nodad")
    trial.undo("ip", "-6", "addr", "del", "2001:db8:a::99/64", "dev", LAN_A.interface)
    trial.settle()


ATTACK = Attack(
    id="A16",
    name="second interface, flapping link",
    reference="kill switches that know one interface; docks, phones over USB, roaming",
    summary="A cable or a phone is plugged in beside the first network, with a better route; a link goes down and "
    "comes back; an address changes.",
    actors=(Actor.ROOT, Actor.USER),
    recognised="by source port or a token in the payload",
    control="the same packets on both networks without the lock",
    run=run,
    disturbs=True,
    not_applicable={Mode.TRANSITION: "this state repeats the attack itself; A01 to A06 run in it"},
)
