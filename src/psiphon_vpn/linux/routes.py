# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Routing rules and the private routing table: add what is missing, remove what is foreign, compare."""

import errno
from collections.abc import Iterable
from dataclasses import dataclass, replace

from psiphon_vpn.linux.rtbatch import RTN_UNICAST, RTN_UNREACHABLE, encode_route, encode_route_removal, encode_rule
from psiphon_vpn.linux.rtlist import find_way, knows_ipv6, list_routes, list_rules
from psiphon_vpn.linux.rtnetlink import NLM_F_CREATE, NLM_F_EXCL, RTM_DELRULE, Message, RouteSocket
from psiphon_vpn.linux.rtvalues import Hop, KernelRule
from psiphon_vpn.policy import names
from psiphon_vpn.policy.routing import (
    IPV4,
    IPV6,
    LOCAL_TABLE,
    RULE_PRIORITIES,
    SAMPLE_DESTINATIONS,
    Route,
    RoutingRule,
)

_ROOT, _MOST_SHOWN = 0, 5


class RoutingError(Exception):
    """The kernel's rules or routes are not what they should be, or cannot be changed."""


async def _read_rules() -> list[KernelRule]:
    """All rules in our range of priorities, and any that come before it."""
    found = [rule for version in (IPV4, IPV6) for rule in await list_rules(version)]
    return [item for item in found if item.rule.priority <= RULE_PRIORITIES[-1]]


async def _choose_rules(rules: Iterable[RoutingRule], present: list[RoutingRule]) -> list[RoutingRule]:
    """The rules that must stand: without IPv6's on a kernel without it, and with those to this machine's own addresses.

    The kernel's own rule for the table `local` may have been deleted, or moved to a later place (ip-vrf(8)). Without it
    packets from the tunnel are not delivered.
    """
    versions = [IPV4, IPV6] if await knows_ipv6() else [IPV4]
    found = {rule.version for rule in present if rule == replace(_to_local(rule.version), priority=rule.priority)}
    return [
        *(_to_local(version) for version in versions if version not in found),
        *(rule for rule in rules if rule.version in versions),
    ]


def _to_local(version: int) -> RoutingRule:
    return RoutingRule(version=version, priority=0, table=LOCAL_TABLE)


@dataclass(frozen=True)
class _Found:
    """A route of the private table: its value, its type (RTN_*), and whether the daemon makes routes of its kind."""

    route: Route
    type: int
    ours: bool


async def _read_routes(tun_index: int | None) -> list[_Found]:
    routes = []
    for version in (IPV4, IPV6):
        for item in await list_routes(version, table=names.ROUTE_TABLE):
            unreachable = item.type == RTN_UNREACHABLE
            route = Route(
                version=version,
                destination=item.destination,
                metric=item.metric,
                source=item.source,
                unreachable=unreachable,
            )
            # Not ours: another device, a gateway, or a type that we never make ("throw" leads past this table).
            direct = item.type == RTN_UNICAST and item.plain and item.hops == (Hop(device=tun_index, gateway=None),)
            routes.append(_Found(route, item.type, unreachable or direct))
    return routes


def _tolerate(socket: RouteSocket, message: Message, flags: int, *codes: int) -> bool:
    """Make one change. That somebody else made it first is no failure.

    Returns:
        Whether the change was made by this call.
    """
    try:
        socket.change(*message, flags=flags)
    except OSError as error:
        if error.errno not in codes:
            raise RoutingError(error.strerror) from error
        return False
    return True


async def apply_rules(socket: RouteSocket, rules: Iterable[RoutingRule]) -> None:
    """Make these the rules in our range: missing rules are added before foreign ones are removed.

    A second round follows if a foreign rule was in the way of one of ours: to the kernel a rule exists if there is one
    that says the same and more (fib_rules.c, rule_exists).

    Raises:
        RoutingError: the kernel refused one.
        OSError: it does not answer.
    """
    wanted = list(rules)
    for _ in range(2):
        present = await _read_rules()
        known = [item.rule for item in present]
        chosen = await _choose_rules(wanted, known)
        occupied = False
        for rule in chosen:
            if rule not in known:
                made = _tolerate(socket, encode_rule(rule), NLM_F_CREATE | NLM_F_EXCL, errno.EEXIST)
                occupied = occupied or not made
        for item in present:
            if item.rule not in chosen and item.rule.priority in RULE_PRIORITIES:
                _tolerate(socket, (RTM_DELRULE, item.body), 0, errno.ENOENT, errno.ESRCH)
        if not occupied:
            return


async def apply_routes(socket: RouteSocket, routes: Iterable[Route], tun_index: int | None) -> None:
    """Make these the routes of the private table. Unreachable routes are added first, and foreign ones removed last.

    A second round follows if a foreign route was in the way of one of ours.

    Raises:
        RoutingError: the kernel refused one.
        OSError: it does not answer.
    """
    versions = {IPV4, IPV6} if await knows_ipv6() else {IPV4}
    wanted = [route for route in sorted(routes, key=lambda route: not route.unreachable) if route.version in versions]
    for _ in range(2):
        present = await _read_routes(tun_index)
        known = [found.route for found in present if found.ours]
        occupied = False
        for route in wanted:
            if route not in known:
                made = _tolerate(socket, encode_route(route, tun_index or 0), NLM_F_CREATE | NLM_F_EXCL, errno.EEXIST)
                occupied = occupied or not made
        for found in present:
            if not found.ours or found.route not in wanted:
                removal = encode_route_removal(found.route, found.type)
                _tolerate(socket, removal, 0, errno.ESRCH, errno.ENOENT)
        if not occupied:
            return


async def find_detour(routes: Iterable[Route], tun_index: int) -> str | None:
    """Why packets of programs do not go into the tunnel although its routes stand; None if they do.

    A rule that is added without a priority comes before all others (fib_rules.c, fib_default_rule_pref): another VPN's,
    or one that leads to the main table. Nothing leaks by it, but nothing enters the tunnel.

    Raises:
        OSError: the kernel does not answer.
    """
    opened = {route.version for route in routes if not route.unreachable and route.destination.endswith("/0")}
    for version in sorted(opened):
        if any(find_way(version, address, _ROOT) != tun_index for address in SAMPLE_DESTINATIONS[version]):
            found = {item.rule.priority for item in await _read_rules() if item.rule.version == version}
            before = sorted(priority for priority in found if 0 < priority < RULE_PRIORITIES[0])
            shown = ", ".join(map(str, before[:_MOST_SHOWN])) or "0"
            return f"IPv{version} rule {shown}"
    return None


async def check_routing(rules: Iterable[RoutingRule], routes: Iterable[Route], tun_index: int | None) -> str | None:
    """Why rules or routes are not as they should be; None if they are.

    Raises:
        OSError: the kernel does not answer.
    """
    standing = [item.rule for item in await _read_rules()]
    wanted_rules = await _choose_rules(rules, standing)
    missing = [rule for rule in wanted_rules if rule not in standing]
    if missing:
        return f"{len(missing)} routing rules are missing"
    if any(rule.priority in RULE_PRIORITIES and rule not in wanted_rules for rule in standing):
        return "another program's routing rule stands among ours"
    without_ipv6 = not await knows_ipv6()
    wanted = {route for route in routes if route.version == IPV4 or not without_ipv6}
    present = await _read_routes(tun_index)
    if not all(found.ours for found in present):
        return "the private routing table has a route that leads elsewhere"
    if {found.route for found in present} != wanted:
        return "the private routing table is not as it should be"
    return None
