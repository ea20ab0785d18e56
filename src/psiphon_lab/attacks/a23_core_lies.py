"""A23: the tunnel core misbehaves."""

from __future__ import annotations

from psiphon_lab.attacks._send import volley
from psiphon_lab.leaktest.arena import Arena
from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.terms import Actor, Mode

FAULTS = ("junk", "flood", "flap", "blackhole", "liar", "hang", "disconnect", "silent")
SECONDS = 1.6
NO_CORE = "there is no core in this state"


def run(arena: Arena) -> None:
    """Nonsense, floods, a tunnel that it does not have, silence; programs try to get out all the time."""
    volley(arena, "meanwhile", seconds=SECONDS)
    if arena.locked:
        arena.cleanups.callback(_behave, arena)
        for kind in FAULTS:
            arena.stage.set_faults({"kind": kind})
            arena.say(f"the core: {kind}")
            if kind in {"liar", "hang"}:
                try:
                    arena.stage.machine.command("restart")
                except Exception as error:  # noqa: BLE001 - it may be restarting just now, which is as good
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
    reference="the core as a part that is not trusted",
    plain="The tunnel program reports nonsense, floods the service with messages, hangs, drops its tunnel, or says "
    "that it has one when it has none.",
    actors=(Actor.ROOT, Actor.USER),
    recognised="by source port or a token in the payload",
    control="the same packets without the lock",
    run=run,
    disturbs=True,
    standin_only=True,
    senseless={
        Mode.BOOT: NO_CORE,
        Mode.DAEMON_KILLED: "the core dies with the daemon",
        Mode.DAEMON_STOPPED: "nobody listens to the core in this state",
        Mode.SERVICE_STOPPED: NO_CORE,
        Mode.CORE_KILLED: "every core ends at once in this state, whatever it would say",
        Mode.CORE_STOPPED: "a stopped core says nothing",
    },
)
