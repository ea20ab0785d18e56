# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A08: the tunnel device is removed, or another device takes its name."""

from __future__ import annotations

from psiphon_lab.addresses import LAN_A
from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.model import Actor
from psiphon_lab.leaktest.trial import Trial
from psiphon_lab.sending import volley
from psiphon_lab.service_adapter.names import ROUTE_TABLE, TUN_NAME

PRIVATE = str(ROUTE_TABLE)
SECONDS = 1.3
PAUSE = 0.12


def run(trial: Trial) -> None:
    """Set down, renamed, deleted; then a child of the network card takes its name and gets a default route."""
    volley(trial, "while it changes", seconds=SECONDS, raw=True)
    trial.wait(0.05)
    for argv in (
        ["ip", "link", "set", TUN_NAME, "down"],
        ["ip", "link", "set", TUN_NAME, "name", "other0"],
        ["ip", "link", "del", "other0"],
        ["ip", "link", "del", TUN_NAME],
        # A device of another kind with its name, which leads to the wire.
        ["ip", "link", "add", TUN_NAME, "link", LAN_A.interface, "type", "macvlan", "mode", "bridge"],
        ["ip", "addr", "add", "192.0.2.77/25", "dev", TUN_NAME],
        ["ip", "addr", "add", "2001:db8:a::77/64", "dev", TUN_NAME, "nodad"],
        ["ip", "link", "set", TUN_NAME, "up"],
        ["ip", "route", "add", "default", "via", LAN_A.router4, "dev", TUN_NAME, "metric", "1"],
        ["ip", "-6", "route", "add", "default", "via", LAN_A.router6, "dev", TUN_NAME, "metric", "1"],
        ["ip", "route", "replace", "default", "via", LAN_A.router4, "dev", TUN_NAME, "table", PRIVATE, "metric", "1"],
        ["ip", "-6", "route", "replace", "default", "via", LAN_A.router6, "dev", TUN_NAME, "table", PRIVATE,
         "metric", "1"],
    ):  # fmt: skip
        trial.run(*argv)
        trial.wait(PAUSE if argv[2] in {"set", "del"} else 0)
    if not trial.locked:
        # Without the lock there is no tunnel: only the child of the card is left, and every shot must show on it.
        trial.undo("ip", "link", "del", TUN_NAME)
    trial.settle()
    kinds = trial.client.run(["ip", "-d", "link", "show", TUN_NAME], check=False).stdout
    if "macvlan" in kinds:
        trial.run("ip", "link", "del", TUN_NAME)


ATTACK = Attack(
    id="A08",
    name="tunnel device removed",
    reference="kill switches that depend on a device's name; wg-quick down",
    summary="Root, or a network manager, deletes the tunnel's device, sets it down, renames it, and gives its name to "
    "a device that leads straight onto the network.",
    actors=(Actor.ROOT,),
    recognised="by source port or a token in the payload",
    control="the same packets, with the same device under that name, without the lock",
    run=run,
    disturbs=True,
)
