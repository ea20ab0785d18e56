# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Single layers of the lock, built by the service's own code and loaded without the others."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Sequence
from dataclasses import replace

from psiphon_lab.layers_table import ARP_TABLE, EGRESS, FILTERS, FRAMES, GUARD, POSTROUTING
from psiphon_lab.service_adapter import names
from psiphon_vpn.linux.rtbatch import encode_route, encode_rule, encode_tun
from psiphon_vpn.linux.rtnetlink import RouteSocket
from psiphon_vpn.linux.traffic import NetlinkTraffic, Traffic, remove_filters
from psiphon_vpn.linux.tun import make_tun
from psiphon_vpn.policy.base import build_base_table
from psiphon_vpn.policy.guards import build_arp_table, build_egress_guard, build_frame_guard, build_wire_guard
from psiphon_vpn.policy.model import Identity, Links, Policy, State
from psiphon_vpn.policy.routing import build_routes, build_rules
from psiphon_vpn.policy.ruleset import Chain, Hook, Rule, Table
from psiphon_vpn.policy.sysctls import GLOBAL_SYSCTLS
from psiphon_vpn.policy.traffic_control import Filter
from psiphon_vpn.policy.values import parse_names

__all__ = ["make_tun", "remove_filters"]

ARP_SYSCTLS: dict[str, str] = {
    name.removeprefix("net/"): value for name, value in GLOBAL_SYSCTLS.items() if "arp_" in name
}
"""The layer "ARP settings": values by path below /proc/sys/net."""


class SingleLayers:
    """The layers for one machine. What changes the kernel is called in the machine's network namespace.

    Args:
        uid: uid of psiphon-user and gid of psiphon-group.
        wires: the machine's wires; the first is the uplink.
        tun_index: interface index of the TUN.
    """

    def __init__(self, *, uid: int, wires: Sequence[str], tun_index: int) -> None:
        self._identity = Identity(uid=uid, gid=uid)
        self._wires = parse_names(*wires)
        self._tun_index = tun_index

    def render(self, layer: str, *, is_open: bool = False) -> str:
        """The rules of a layer that is a table, or part of the base table, for `nft -f`."""
        links = Links(tun_index=self._tun_index, uplink=self._wires[0], wires=self._wires, versions=(4, 6))
        state = State.OPEN if is_open else State.LOCKED
        return _render(self._build(layer, Policy(state=state, identity=self._identity, links=links)))

    def _build(self, layer: str, policy: Policy) -> Table:
        base = build_base_table(policy)
        egress, frames = build_egress_guard(self._identity, self._wires), build_frame_guard(self._identity, self._wires)
        assert egress is not None
        shared = {chain.name for chain in base.chains if chain.hook is None}
        parts = {
            FILTERS: {*shared, "output", "input", "forward"},
            POSTROUTING: {*shared, "postrouting"},
        }
        if layer in parts:
            return replace(base, chains=tuple(chain for chain in base.chains if chain.name in parts[layer]))
        tables = {GUARD: build_wire_guard(self._identity), EGRESS: egress, FRAMES: frames, ARP_TABLE: build_arp_table()}
        return tables[layer]

    def render_marking_guard(self) -> str:
        """An egress guard that accepts and marks everything: only the traffic-control filter can then stop a frame."""
        rule = Rule(text="accept", comment="everything", permit="everything")
        chains = tuple(
            Chain(
                name=f"{names.DEVICE_CHAIN_PREFIX}{wire}",
                hook=Hook(kind="filter", hook="egress", priority=0, policy="drop", devices=(wire,)),
                rules=(rule,),
            )
            for wire in self._wires
        )
        return _render(Table(family="netdev", name=names.EGRESS_TABLE, chains=chains).mark_accepted(names.ACCEPTED_BIT))

    def add_filters(self) -> None:
        """Add the traffic-control filter to each wire."""

        async def add() -> None:
            with contextlib.closing(RouteSocket()) as changes:
                traffic = Traffic(NetlinkTraffic(changes))
                await traffic.fit({socket.if_nametoindex(wire): Filter.MARKED for wire in self._wires})
                assert all(standing.filter is Filter.MARKED for standing in traffic.standings.values())

        asyncio.run(add())

    def add_routing(self) -> None:
        """Add the routing wall: the private table, and the rules that lead there."""
        routes = build_routes(tun=True, open_ipv4=False, open_ipv6=False)
        _add([encode_route(route, self._tun_index) for route in routes])
        _add([encode_rule(rule) for rule in build_rules(self._identity)])

    def list_rules(self) -> list[tuple[int, int]]:
        """IP version and priority of each rule of the routing wall."""
        return [(rule.version, rule.priority) for rule in build_rules(self._identity)]


def add_tun_addresses(tun_index: int) -> None:
    """Set the TUN up and give it its addresses, in this network namespace."""
    _add(encode_tun(tun_index))


def _add(messages: Sequence[tuple[int, bytes]]) -> None:
    with contextlib.closing(RouteSocket()) as changes:
        refused = changes.add(messages)
    assert not refused, refused


def _render(table: Table) -> str:
    # Without the owner flag, which changes nothing about what a table stops: here nobody holds it.
    return table.render(flags="")
