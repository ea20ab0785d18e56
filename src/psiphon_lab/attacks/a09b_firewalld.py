# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A09b: firewalld is started, reloaded and stopped."""

from __future__ import annotations

import contextlib

from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.model import Actor, Mode
from psiphon_lab.leaktest.trial import Trial
from psiphon_lab.namespace import LabError
from psiphon_lab.sending import volley
from psiphon_lab.waiting import wait_until

BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path={socket}</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow own="*"/><allow send_type="method_call"/>
<allow send_destination="*"/><allow receive_sender="*"/></policy></busconfig>
"""
ASK_STATE = (
    "dbus-send", "--system", "--print-reply", "--dest=org.fedoraproject.FirewallD1", "/org/fedoraproject/FirewallD1",
    "org.freedesktop.DBus.Properties.Get", "string:org.fedoraproject.FirewallD1", "string:state",
)  # fmt: skip
SECONDS = 2.5


def run(trial: Trial) -> None:
    """Run the real firewalld, with its own bus, in the machine's network namespace only; programs send meanwhile."""
    directory = trial.testbed.world.directory / "attacks" / trial.attack
    (directory / "etc").mkdir(parents=True, exist_ok=True)
    socket = directory / "bus"
    with contextlib.suppress(FileNotFoundError):
        socket.unlink()
    config = trial.scratch("bus.conf", BUS.format(socket=socket))
    trial.spawn(["dbus-daemon", "--nofork", "--nopidfile", f"--config-file={config}"])
    wait_until(socket.exists, "the bus of firewalld")
    environment = ["env", f"DBUS_SYSTEM_BUS_ADDRESS=unix:path={socket}"]
    firewalld = trial.spawn(
        [*environment, "firewalld", "--nofork", "--nopid", "--system-config", str(directory / "etc")]
    )
    volley(trial, "meanwhile", seconds=SECONDS, raw=True)

    def answers() -> bool:
        # firewall-cmd asks the same, but on an emulated processor its own start takes longer than firewalld's.
        return trial.client.run([*environment, *ASK_STATE], check=False).returncode == 0

    try:
        wait_until(answers, "firewalld", pause=0.1)
    except LabError:
        trial.say("firewalld did not answer")
        raise
    trial.run(*environment, "firewall-cmd", "--complete-reload", check=not trial.churn)
    trial.wait(0.2)
    firewalld.terminate()
    trial.say("firewalld stopped")
    trial.undo("nft", "delete", "table", "inet", "firewalld")
    volley(trial, "after", seconds=0.1, raw=True)


ATTACK = Attack(
    id="A09b",
    name="firewalld",
    reference="firewalld flushes and replaces what it finds at start, reload and stop",
    summary="The firewall service of Fedora, openSUSE and others is started, reloaded and stopped while the lock "
    "stands.",
    actors=(Actor.ROOT,),
    recognised="by source port or a token in the payload",
    control="the same packets with firewalld alone",
    run=run,
    disturbs=True,
    not_applicable={Mode.FLUSHED: "firewalld ends when its rules are flushed while it loads them; A09 covers this"},
    tools=("firewalld", "firewall-cmd", "dbus-daemon", "dbus-send"),
)
