# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A23: the tunnel core misbehaves."""

from __future__ import annotations

from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.model import Actor, Mode
from psiphon_lab.leaktest.trial import Trial
from psiphon_lab.sending import volley

FAULTS = ("junk", "flood", "flap", "blackhole", "liar", "hang", "disconnect", "silent")
SECONDS = 1.6
NO_CORE = "there is no core in this state"


def run(trial: Trial) -> None:
    """Make the core send nonsense and floods, report tunnels that do not exist, and fall silent; send meanwhile."""
    volley(trial, "meanwhile", seconds=SECONDS)
    if trial.locked:
        trial.cleanups.callback(_behave, trial)
        for kind in FAULTS:
            trial.testbed.set_faults({"kind": kind})
            trial.say(f"the core: {kind}")
            if kind in {"liar", "hang"}:
                try:
                    trial.testbed.machine.command("restart")
                except Exception as error:  # noqa: BLE001 - it may be restarting already
                    trial.say(f"restart: {type(error).__name__}")
            trial.wait(SECONDS / len(FAULTS))
    trial.settle()


def _behave(trial: Trial) -> None:
    trial.testbed.set_faults()
    try:
        trial.testbed.machine.command("restart")
    except Exception as error:  # noqa: BLE001 - as above
        trial.say(f"restart: {type(error).__name__}")


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
