# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A10: another program removes or changes the service's routes and routing rules."""

from __future__ import annotations

from psiphon_lab.addresses import LAN_A
from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.model import Actor
from psiphon_lab.leaktest.trial import Trial
from psiphon_lab.sending import volley
from psiphon_lab.service_adapter import names

PAUSE = 0.08
PRIVATE = str(names.ROUTE_TABLE)
AHEAD = "99"


def restore_rules(trial: Trial) -> None:
    """Restore the kernel's own rules, which a flush removes too, except the first."""
    for family in ("-4", "-6"):
        trial.client.run(["ip", family, "rule", "add", "lookup", "main", "priority", "32766"], check=False)
    trial.client.run(["ip", "rule", "add", "lookup", "default", "priority", "32767"], check=False)


def run(trial: Trial) -> None:
    """Flush the rules and the private table, add a way out to that table, and a rule before ours."""
    volley(trial, "meanwhile", seconds=1.0)
    trial.wait(0.05)
    trial.cleanups.callback(restore_rules, trial)
    for family, router in (("-4", LAN_A.router4), ("-6", LAN_A.router6)):
        trial.run("ip", family, "rule", "flush")
        restore_rules(trial)
        trial.wait(PAUSE)
        trial.run("ip", family, "route", "flush", "table", PRIVATE)
        trial.wait(PAUSE)
        route = ["default", "via", router, "dev", LAN_A.interface, "table", PRIVATE, "metric", "1"]
        trial.run("ip", family, "route", "add", *route)
        trial.undo("ip", family, "route", "del", *route)
        trial.wait(PAUSE)
        trial.run("ip", family, "rule", "add", "lookup", "main", "priority", AHEAD)
        trial.undo("ip", family, "rule", "del", "priority", AHEAD)
        trial.wait(PAUSE)


ATTACK = Attack(
    id="A10",
    name="routes flushed",
    reference="`ip rule flush`; network managers that remove foreign rules",
    summary="Root, or a network manager, deletes the routing rules that send everything into the tunnel, or adds rules "
    "that lead around it.",
    actors=(Actor.ROOT,),
    recognised="by source port or a token in the payload",
    control="the same packets without the lock",
    run=run,
    disturbs=True,
)
