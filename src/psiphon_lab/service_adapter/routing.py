# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The routing wall: which rules and routes the service keeps."""

from __future__ import annotations

from psiphon_vpn.policy.model import Identity
from psiphon_vpn.policy.routing import build_routes, build_rules


def list_rules(identity: Identity) -> frozenset[tuple[int, int]]:
    """IP version and priority of each rule."""
    return frozenset((rule.version, rule.priority) for rule in build_rules(identity))


def list_routes(*, through_tun: bool) -> frozenset[tuple[int, int, int]]:
    """IP version, prefix length and metric of each route that exists in every state.

    through_tun: only those that disappear with the TUN.
    """
    built = build_routes(tun=True, open_ipv4=False, open_ipv6=False)
    return frozenset(
        (route.version, int(route.destination.split("/")[1]), route.metric)
        for route in built
        if not (through_tun and route.unreachable)
    )
