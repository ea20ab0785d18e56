"""A18: suspend and resume."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from psiphon_lab.addresses import LAN_A
from psiphon_lab.attacks._send import restore_uplink, volley
from psiphon_lab.leaktest.arena import Arena
from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.terms import Actor, Mode
from psiphon_lab.namespace import LabError


def _service(arena: Arena) -> list[int]:
    """The daemon and what it started."""
    try:
        daemon = arena.stage.machine.daemon_pid
    except LabError:
        return []
    found = [daemon]
    for task in Path(f"/proc/{daemon}/task").iterdir():
        with contextlib.suppress(OSError):
            found += [int(word) for word in (task / "children").read_text().split()]
    return found


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def run(arena: Arena) -> None:
    """The service is frozen whole, the link goes, comes back with another address, and programs wake up first."""
    world = arena.stage.world
    frozen = _service(arena)
    _signal(frozen, signal.SIGSTOP)
    arena.say(f"{len(frozen)} processes of the service frozen, the link is lost")
    world.set_carrier(LAN_A, up=False)
    arena.wait(0.3)
    world.set_carrier(LAN_A, up=True)
    restore_uplink(arena)
    volley(arena, "awake before the service", seconds=0.3)
    arena.wait(0.3)
    if arena.mode is not Mode.DAEMON_STOPPED:
        _signal(frozen, signal.SIGCONT)
        arena.say("the service goes on")
    volley(arena, "awake with the service", seconds=0.2)
    arena.settle()


ATTACK = Attack(
    id="A18",
    name="suspend and resume",
    reference="NordVPN #243",
    plain="The lid is closed and opened again. Programs wake up before the VPN does, on a network that may be another "
    "one. (The laboratory freezes the whole service and takes the link away; it cannot put a computer to sleep.)",
    actors=(Actor.ROOT, Actor.USER),
    recognised="by source port or a token in the payload",
    control="the same packets without the lock",
    run=run,
    disturbs=True,
    senseless={
        Mode.TRANSITION: "the link is lost in this state again and again, and the frozen service is daemon-stopped",
        Mode.RESTARTING: "there is no one service to freeze while it is restarted; daemon-stopped is that state",
        Mode.UPGRADING: "there is no one service to freeze while it is replaced; daemon-stopped is that state",
    },
)
