# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A18: suspend and resume."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from psiphon_lab.addresses import LAN_A
from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.model import Actor, Mode
from psiphon_lab.leaktest.trial import Trial
from psiphon_lab.namespace import LabError
from psiphon_lab.sending import restore_uplink, volley


def _service(trial: Trial) -> list[int]:
    """Process ids of the daemon and of its children."""
    try:
        daemon = trial.testbed.machine.daemon_pid
    except LabError:
        return []
    processes = [daemon]
    for task in Path(f"/proc/{daemon}/task").iterdir():
        with contextlib.suppress(OSError):
            processes += [int(word) for word in (task / "children").read_text().split()]
    return processes


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def run(trial: Trial) -> None:
    """Freeze the whole service, take the link down and up again, and let programs send before the service runs."""
    world = trial.testbed.world
    frozen = _service(trial)
    _signal(frozen, signal.SIGSTOP)
    trial.say(f"{len(frozen)} processes of the service frozen, the link is lost")
    world.set_carrier(LAN_A, up=False)
    trial.wait(0.3)
    world.set_carrier(LAN_A, up=True)
    restore_uplink(trial)
    volley(trial, "awake before the service", seconds=0.3)
    trial.wait(0.3)
    if trial.mode is not Mode.DAEMON_STOPPED:
        _signal(frozen, signal.SIGCONT)
        trial.say("the service runs again")
    volley(trial, "awake with the service", seconds=0.2)
    trial.settle()


ATTACK = Attack(
    id="A18",
    name="suspend and resume",
    reference="NordVPN #243",
    summary="The lid is closed and opened again. Programs wake up before the VPN does, perhaps on another network. "
    "(The laboratory freezes the whole service and takes the link down; it cannot put a computer to sleep.)",
    actors=(Actor.ROOT, Actor.USER),
    recognised="by source port or a token in the payload",
    control="the same packets without the lock",
    run=run,
    disturbs=True,
    not_applicable={
        Mode.TRANSITION: "this state takes the link down again and again, and a frozen service is daemon-stopped",
        Mode.RESTARTING: "a service that restarts again and again cannot be frozen; daemon-stopped covers a frozen one",
        Mode.UPGRADING: "a service that changes again and again cannot be frozen; daemon-stopped covers a frozen one",
    },
)
