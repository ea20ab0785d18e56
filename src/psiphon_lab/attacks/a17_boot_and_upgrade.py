"""A17: the rules of boot are loaded once more, and the holder of the guards is replaced."""

from __future__ import annotations

from psiphon_lab.attacks._send import volley
from psiphon_lab.leaktest.arena import Arena
from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.terms import Actor, Mode

SECONDS = 0.9


def run(arena: Arena) -> None:
    """What a shutdown, a package upgrade and a second installation do, while programs and raw frames try."""
    machine = arena.stage.machine
    volley(arena, "meanwhile", seconds=SECONDS, raw=True)
    arena.wait(0.05)
    if arena.locked:
        for _ in range(2):
            machine.boot_lock()
            arena.say("the boot rules are loaded over what stands")
            arena.wait(0.1)
            machine.reload_guard()
            arena.say("the holder replaces the guards' tables")
            arena.wait(0.1)
        if arena.mode not in {Mode.BOOT, Mode.FLUSHED, Mode.TRANSITION}:
            # Where the egress guard is not there either, the holder's death leaves raw frames to nobody: SECURITY.md.
            machine.release_guard()
            machine.hold_guard()
            arena.say("the holder of the guards is killed, and another started")
            arena.wait(0.1)
    arena.settle()


ATTACK = Attack(
    id="A17",
    name="boot, shutdown, upgrade, reinstallation",
    reference="MUL22-02, IVPN #124",
    plain="The computer boots, shuts down, or the program is upgraded or installed twice: rules are loaded over "
    "rules, and what holds them is replaced. There must be no moment without a lock.",
    actors=(Actor.ROOT, Actor.USER),
    recognised="by source port or a token in the payload",
    control="the same packets without the lock",
    run=run,
    disturbs=True,
    senseless={Mode.UPGRADING: "the state is this very attack, again and again; A01 to A06 run in it"},
)
