"""Routing rules and the private routing table: put what is missing, take away what is not ours to keep, compare."""

from collections.abc import Awaitable, Iterable
from dataclasses import dataclass
from typing import Any

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from psiphon_vpn.policy import names
from psiphon_vpn.policy.routing import IPV4, IPV6, MARK_MASK, RULE_PRIORITIES, Route, RoutingRule

FAMILY = {IPV4: 2, IPV6: 10}
VERSION = {2: IPV4, 10: IPV6}
RTN_UNICAST, RTN_UNREACHABLE = 1, 7
RT_SCOPE_NOWHERE = 255
FIB_RULE_INVERT = 0x2
EEXIST, ENOENT, ESRCH = 17, 2, 3


class RoutingError(Exception):
    """The kernel's rules or routes are not what they should be, or cannot be changed."""


def read_rule(message: Any) -> RoutingRule:
    """A rule of the kernel as a value."""
    uid_range = message.get("FRA_UID_RANGE")
    port = message.get("FRA_DPORT_RANGE")
    version = VERSION[message["family"]]
    destination = message.get("FRA_DST")
    mark = message.get("FRA_FWMARK")
    low_high = tuple(int(part) for part in uid_range.split(":")) if uid_range else None
    return RoutingRule(
        version=version,
        priority=message.get("FRA_PRIORITY", 0),
        table=message.get("FRA_TABLE", message["table"]),
        destination=f"{destination}/{message['dst_len']}" if destination else None,
        input_interface=message.get("FRA_IIFNAME"),
        output_interface=message.get("FRA_OIFNAME"),
        fwmark=mark if mark and message.get("FRA_FWMASK") == MARK_MASK else None,
        uid_range=(low_high[0], low_high[1]) if low_high else None,
        protocol=message.get("FRA_IP_PROTO"),
        inverted=bool(message["flags"] & FIB_RULE_INVERT),
        destination_port=int(port.split(":")[0]) if port else None,
    )


def _rule_arguments(rule: RoutingRule) -> dict[str, Any]:
    arguments: dict[str, Any] = {"family": FAMILY[rule.version], "priority": rule.priority, "table": rule.table}
    if rule.destination is not None:
        arguments["dst"], length = rule.destination.split("/")
        arguments["dst_len"] = int(length)
    if rule.input_interface is not None:
        arguments["iifname"] = rule.input_interface
    if rule.output_interface is not None:
        arguments["oifname"] = rule.output_interface
    if rule.fwmark is not None:
        arguments |= {"fwmark": rule.fwmark, "fwmask": MARK_MASK}
    if rule.uid_range is not None:
        arguments["uid_range"] = f"{rule.uid_range[0]}:{rule.uid_range[1]}"
    if rule.protocol is not None:
        arguments["ip_proto"] = rule.protocol
    if rule.inverted:
        arguments["flags"] = FIB_RULE_INVERT
    if rule.destination_port is not None:
        arguments["dport_range"] = f"{rule.destination_port}:{rule.destination_port}"
    return arguments


async def _read_rules(ipr: AsyncIPRoute) -> list[RoutingRule]:
    """All rules in our range of priorities, and any that come before it but after `local`."""
    rules = []
    for family in FAMILY.values():
        async for message in await ipr.get_rules(family=family):
            rule = read_rule(message)
            if 0 < rule.priority <= RULE_PRIORITIES[-1]:
                rules.append(rule)
    return rules


@dataclass(frozen=True)
class _Found:
    """A route of the private table: its value, its type (RTN_*), and whether it is one of the kinds that we make."""

    route: Route
    type: int
    ours: bool


async def _read_routes(ipr: AsyncIPRoute, tun_index: int | None) -> list[_Found]:
    routes = []
    for family in FAMILY.values():
        async for message in await ipr.get_routes(family=family, table=names.ROUTE_TABLE):
            if message.get("RTA_TABLE", message["table"]) != names.ROUTE_TABLE:
                continue
            version = VERSION[family]
            destination = message.get("RTA_DST") or ("0.0.0.0" if version == IPV4 else "::")  # noqa: S104  a destination
            unreachable = message["type"] == RTN_UNREACHABLE
            device = message.get("RTA_OIF")
            route = Route(
                version=version,
                destination=f"{destination}/{message['dst_len']}",
                metric=message.get("RTA_PRIORITY", 0),
                source=message.get("RTA_PREFSRC"),
                unreachable=unreachable,
            )
            # By anything but our TUN, by a gateway, or of a type that we never make ("throw" leads past this table).
            direct = message["type"] == RTN_UNICAST and device == tun_index and message.get("RTA_GATEWAY") is None
            routes.append(_Found(route, message["type"], unreachable or direct))
    return routes


def _route_arguments(route: Route, tun_index: int | None) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "family": FAMILY[route.version],
        "dst": route.destination,
        "table": names.ROUTE_TABLE,
        "priority": route.metric,
    }
    if route.unreachable:
        return arguments | {"type": "unreachable"}
    return arguments | {"oif": tun_index, "prefsrc": route.source, "scope": "link" if route.version == IPV4 else 0}


async def _tolerate(call: Awaitable[object], *codes: int) -> bool:
    """Await one change; what the kernel says about a change that someone made first is no failure.

    Returns:
        Whether the change was made by this call.
    """
    try:
        await call
    except NetlinkError as error:
        if error.code not in codes:
            raise RoutingError(str(error)) from error
        return False
    return True


async def apply_rules(ipr: AsyncIPRoute, rules: Iterable[RoutingRule]) -> None:
    """Make the rules so: the missing are added before a stranger in our range is removed.

    Raises:
        RoutingError: the kernel refused one.
    """
    wanted = list(rules)
    present = await _read_rules(ipr)
    for rule in wanted:
        if rule not in present:
            await _tolerate(ipr.rule("add", **_rule_arguments(rule)), EEXIST)
    for rule in present:
        if rule not in wanted and rule.priority in RULE_PRIORITIES:
            await _tolerate(ipr.rule("del", **_rule_arguments(rule)), ENOENT, ESRCH)


async def apply_routes(ipr: AsyncIPRoute, routes: Iterable[Route], tun_index: int | None) -> None:
    """Make the private table so. Routes that close are added before, and those that open removed, in this order.

    A second round follows where a stranger's route had taken the place of one of ours.

    Raises:
        RoutingError: the kernel refused one.
    """
    wanted = sorted(routes, key=lambda route: not route.unreachable)
    for _ in range(2):
        present = await _read_routes(ipr, tun_index)
        known = [found.route for found in present if found.ours]
        occupied = False
        for route in wanted:
            if route not in known:
                made = await _tolerate(ipr.route("add", **_route_arguments(route, tun_index)), EEXIST)
                occupied = occupied or not made
        for found in present:
            if not found.ours or found.route not in wanted:
                await _remove(ipr, found)
        if not occupied:
            return


async def _remove(ipr: AsyncIPRoute, found: _Found) -> None:
    arguments: dict[str, Any] = {
        "family": FAMILY[found.route.version],
        "dst": found.route.destination,
        "priority": found.route.metric,
        "table": names.ROUTE_TABLE,
        "type": found.type,
    }
    if found.route.version == IPV4:
        arguments["scope"] = RT_SCOPE_NOWHERE  # whichever it has (fib_trie.c, fib_table_delete)
    await _tolerate(ipr.route("del", **arguments), ESRCH, ENOENT)


async def check_routing(
    ipr: AsyncIPRoute, rules: Iterable[RoutingRule], routes: Iterable[Route], tun_index: int | None
) -> str | None:
    """Why rules or routes are not what they should be, or None when all is well."""
    standing = await _read_rules(ipr)
    wanted_rules = list(rules)
    missing = [rule for rule in wanted_rules if rule not in standing]
    if missing:
        return f"{len(missing)} routing rules are missing"
    if any(rule.priority in RULE_PRIORITIES and rule not in wanted_rules for rule in standing):
        return "another program's routing rule stands among ours"
    wanted, present = set(routes), await _read_routes(ipr, tun_index)
    if not all(found.ours for found in present):
        return "the private routing table has a route that leads elsewhere"
    if {found.route for found in present} != wanted:
        return "the private routing table is not as it should be"
    return None
