# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A17: the boot rules are loaded again, and the holder is replaced."""

from __future__ import annotations

from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.model import Actor, Mode
from psiphon_lab.leaktest.trial import Trial
from psiphon_lab.sending import volley

SECONDS = 0.9


def run(trial: Trial) -> None:
    """Do what a shutdown, an upgrade and a second installation do, while programs send packets and raw frames."""
    machine = trial.testbed.machine
    volley(trial, "meanwhile", seconds=SECONDS, raw=True)
    trial.wait(0.05)
    if trial.locked:
        for _ in range(2):
            machine.boot_lock()
            trial.say("the boot rules are loaded over the current ones")
            trial.wait(0.1)
            machine.reload_guard()
            trial.say("the holder replaces the guards' tables")
            trial.wait(0.1)
        if trial.mode not in {Mode.BOOT, Mode.FLUSHED, Mode.TRANSITION}:
            # Without the egress guard, nothing stops raw frames once the holder has ended: see SECURITY.md.
            machine.release_guard()
            machine.hold_guard()
            trial.say("the holder is killed, and another one started")
            trial.wait(0.1)
    trial.settle()


ATTACK = Attack(
    id="A17",
    name="boot, shutdown, upgrade, reinstallation",
    reference="MUL22-02, IVPN #124",
    summary="The computer boots or shuts down, or the program is upgraded or installed twice: rules are loaded over "
    "rules, and their holder is replaced. There must be no moment without a lock.",
    actors=(Actor.ROOT, Actor.USER),
    recognised="by source port or a token in the payload",
    control="the same packets without the lock",
    run=run,
    disturbs=True,
    not_applicable={Mode.UPGRADING: "this state repeats the attack itself; A01 to A06 run in it"},
)
