# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A23: the tunnel core misbehaves."""

from __future__ import annotations

from psiphon_lab.leaktest.arena import Arena
from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.model import Actor, Mode
from psiphon_lab.sending import volley

FAULTS = ("junk", "flood", "flap", "blackhole", "liar", "hang", "disconnect", "silent")
SECONDS = 1.6
NO_CORE = "there is no core in this state"


def run(arena: Arena) -> None:
    """Make the core send nonsense and floods, report tunnels that do not exist, and fall silent; send meanwhile."""
    volley(arena, "meanwhile", seconds=SECONDS)
    if arena.locked:
        arena.cleanups.callback(_behave, arena)
        for kind in FAULTS:
            arena.stage.set_faults({"kind": kind})
            arena.say(f"the core: {kind}")
            if kind in {"liar", "hang"}:
                try:
                    arena.stage.machine.command("restart")
                except Exception as error:  # noqa: BLE001 - it may be restarting already
                    arena.say(f"restart: {type(error).__name__}")
            arena.wait(SECONDS / len(FAULTS))
    arena.settle()


def _behave(arena: Arena) -> None:
    arena.stage.set_faults()
    try:
        arena.stage.machine.command("restart")
    except Exception as error:  # noqa: BLE001 - as above
        arena.say(f"restart: {type(error).__name__}")


ATTACK = Attack(
    id="A23",
    name="the tunnel core lies",
    reference="the core is not trusted",
    summary="The tunnel program reports nonsense, floods the service with messages, hangs, drops its tunnel, or "
    "reports a tunnel that does not exist.",
    actors=(Actor.ROOT, Actor.USER),
    recognised="by source port or a token in the payload",
    control="the same packets without the lock",
    run=run,
    disturbs=True,
    standin_only=True,
    not_applicable={
        Mode.BOOT: NO_CORE,
        Mode.DAEMON_KILLED: "the core dies with the daemon",
        Mode.DAEMON_STOPPED: "no daemon reads the core's messages in this state",
        Mode.SERVICE_STOPPED: NO_CORE,
        Mode.CORE_KILLED: "every core ends at once in this state",
        Mode.CORE_STOPPED: "a stopped core sends nothing",
    },
)
