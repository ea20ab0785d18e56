# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A17: the boot rules are loaded again, and the holder is replaced."""

from __future__ import annotations

from psiphon_lab.leaktest.arena import Arena
from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.model import Actor, Mode
from psiphon_lab.sending import volley

SECONDS = 0.9


def run(arena: Arena) -> None:
    """Do what a shutdown, an upgrade and a second installation do, while programs send packets and raw frames."""
    machine = arena.stage.machine
    volley(arena, "meanwhile", seconds=SECONDS, raw=True)
    arena.wait(0.05)
    if arena.locked:
        for _ in range(2):
            machine.boot_lock()
            arena.say("the boot rules are loaded over the current ones")
            arena.wait(0.1)
            machine.reload_guard()
            arena.say("the holder replaces the guards' tables")
            arena.wait(0.1)
        if arena.mode not in {Mode.BOOT, Mode.FLUSHED, Mode.TRANSITION}:
            # Without the egress guard, nothing stops raw frames once the holder has ended: see SECURITY.md.
            machine.release_guard()
            machine.hold_guard()
            arena.say("the holder is killed, and another one started")
            arena.wait(0.1)
    arena.settle()


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
