# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The rules about guests on bridges that root allowed, rendered from their rows.

A port may join a bridge at any moment, so no list of ports makes this safe. The bridge guard does (`policy/guards.py`):
it checks each frame as it leaves through a port. The base table has these rules only while the daemon sees that guard
loaded, and sees only guests on the bridge (`network/bridges.py`).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import replace

from psiphon_vpn.policy import permits
from psiphon_vpn.policy.guests import GUEST_IPV4, GUEST_IPV6, GuestBridge
from psiphon_vpn.policy.match import RuntimeValue
from psiphon_vpn.policy.model import Identity
from psiphon_vpn.policy.render_rules import RenderContext, Value, accept, render_match
from psiphon_vpn.policy.ruleset import Rule
from psiphon_vpn.policy.values import InterfaceName, name_by_index

_NO_OWNERS = RenderContext(identity=Identity(uid=0, gid=0, network_manager_uids=()))
"""Placeholder identity: no row about guests has an owner."""


def _has_ipv6(bridge: GuestBridge) -> bool:
    return any(address.version == 6 for address in bridge.addresses)


def guest_output_rules(bridges: Iterable[GuestBridge], uid: int) -> tuple[Rule, ...]:
    """What this machine may send to guests. psiphon-user may send them nothing: it talks to its server alone."""
    rules: list[Rule] = []
    for bridge in bridges:
        out = f"oif {name_by_index(bridge.index)}"
        for address in bridge.addresses:
            match = replace(permits.GUESTS.match, destinations=(address.network,))
            rules.append(
                accept(permits.GUESTS, render_match(match, _NO_OWNERS, interface=out, version=address.version))
            )
        rules.append(accept(permits.GUESTS_DHCP, render_match(permits.GUESTS_DHCP.match, _NO_OWNERS, interface=out)))
        if _has_ipv6(bridge):
            neighbours = permits.GUESTS_NEIGHBOURS
            rules.append(accept(neighbours, render_match(neighbours.match, _NO_OWNERS, interface=out)))
    if not rules:
        return ()
    return (Rule(text=f"meta skuid {uid} return", comment="the core talks to its server alone"), *rules)


def guest_input_rules(bridges: Iterable[GuestBridge]) -> tuple[Rule, ...]:
    """What guests may send to this machine: answers, DHCP requests and DNS queries."""
    rules: list[Rule] = []
    for bridge in bridges:
        by = f"iif {name_by_index(bridge.index)}"
        rules += [
            accept(permit, render_match(permit.match, _NO_OWNERS, interface=by))
            for permit in (permits.GUEST_ANSWERS, permits.GUEST_DHCP)
        ]
        for address in bridge.addresses:
            match = replace(permits.GUEST_NAMES.match, sources=(address.network,), destinations=(address.ip,))
            rules.append(accept(permits.GUEST_NAMES, render_match(match, _NO_OWNERS, interface=by)))
        if _has_ipv6(bridge):
            rules.append(
                accept(permits.GUEST_ROUTERS, render_match(permits.GUEST_ROUTERS.match, _NO_OWNERS, interface=by))
            )
    return tuple(rules)


def guest_wire_rules(bridges: Iterable[InterfaceName]) -> tuple[Rule, ...]:
    """The same for the wire guard, which knows neither current indexes nor networks.

    Only loaded in one transaction with the bridge guard, which stops all of it at every port but a guest's.
    """
    rules: list[Rule] = []
    for name in bridges:
        out = f'oifname "{name}" meta oifkind "bridge"'
        ipv4, ipv6 = (
            accept(
                permits.GUESTS,
                render_match(permits.GUESTS.match, _know(networks), interface=out, version=version),
                f"{permits.GUESTS.comment}: the bridge guard holds its ports",
            )
            for version, networks in (
                (4, map(ipaddress.IPv4Network, GUEST_IPV4)),
                (6, map(ipaddress.IPv6Network, GUEST_IPV6)),
            )
        )
        answers, neighbours = (
            accept(permit, render_match(permit.match, _NO_OWNERS, interface=out))
            for permit in (permits.GUESTS_DHCP, permits.GUESTS_NEIGHBOURS)
        )
        rules += [ipv4, answers, ipv6, neighbours]
    return tuple(rules)


def _know(networks: Iterable[Value]) -> RenderContext:
    return replace(_NO_OWNERS, values={RuntimeValue.GUEST_NETWORKS: tuple(networks)})
