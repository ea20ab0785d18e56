# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The second wall: rules, the private table, and the kernel settings that they need."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from psiphon_vpn.diagnose.basic_facts import PROC, SYSCTLS
from psiphon_vpn.diagnose.facts import OPEN, Facts
from psiphon_vpn.diagnose.model import Outcome, check, fail, mark, ok, warn
from psiphon_vpn.diagnose.no_answer import Skip
from psiphon_vpn.i18n import _
from psiphon_vpn.network.bridges import list_in_force
from psiphon_vpn.network.uplink import find_conflicts
from psiphon_vpn.policy import names
from psiphon_vpn.policy.guests import list_networks
from psiphon_vpn.policy.routing import RULE_PRIORITIES, RoutingRule, build_rules
from psiphon_vpn.policy.sysctls import GLOBAL_SYSCTLS

RESTART: Final = mark("Put them back: sudo systemctl restart psiphon-vpn")
SYSCTL: Final = mark("Put it back: sudo systemctl restart psiphon-vpn, and find out what sets it in /etc/sysctl.d")
RTN_UNREACHABLE: Final = 7
BONDS: Final = PROC / "net" / "bonding"
LACP_MODE: Final = "Bonding Mode: IEEE 802.3ad Dynamic link aggregation"


def _list_guests(facts: Facts) -> tuple[tuple[int, str], ...]:
    return list_networks(list_in_force(facts.rules.list_allowed_bridges()))


def _build_rules(facts: Facts) -> tuple[RoutingRule, ...]:
    return build_rules(facts.identity, _list_guests(facts), loopback=facts.network.loopback)


@check("routes.rules", mark("The routing rules stand"), RESTART)
def rules(facts: Facts) -> Outcome:
    """Is each rule of the policy there?"""
    wanted = _build_rules(facts)
    missing = [rule for rule in wanted if rule not in facts.network.rules]
    if missing:
        places = ", ".join(f"IPv{rule.version} {rule.priority}" for rule in missing[:6])
        return fail(_("missing: {names}").format(names=places))
    return ok(_("{count} rules from priority {first}").format(count=len(wanted), first=RULE_PRIORITIES[0]))


@check(
    "routes.strangers",
    mark("No other rule precedes the service's"),
    mark("Find out which program made it: ip rule; ip -6 rule. The firewall holds meanwhile."),
)
def strangers(facts: Facts) -> Outcome:
    """Is another program's rule in the range of the service's, or before it?"""
    wanted = set(_build_rules(facts))
    others = [rule for rule in facts.network.rules if 0 < rule.priority <= RULE_PRIORITIES[-1] and rule not in wanted]
    inside = [rule for rule in others if rule.priority in RULE_PRIORITIES]
    shown = ", ".join(f"IPv{rule.version} {rule.priority}" for rule in inside or others)
    if inside:
        return fail(_("among the service's: {names}").format(names=shown))
    return warn(_("before the service's: {names}").format(names=shown)) if others else ok(_("none"))


@check("routes.private-table", mark("The private table leads into the tunnel or nowhere"), RESTART)
def private_table(facts: Facts) -> Outcome:
    """Are all its routes the service's, with the unreachable one below them?"""
    tun = facts.network.tun
    routes = [route for route in facts.network.routes if route.table == names.ROUTE_TABLE]
    for route in routes:
        closed = route.type == RTN_UNREACHABLE
        if not closed and (route.gateway or route.type != 1 or tun is None or route.device != tun.index):
            return fail(_("a route in it leads elsewhere: {name}").format(name=route.destination))
    floor = {route.version for route in routes if route.type == RTN_UNREACHABLE and route.destination.endswith("/0")}
    wanted = {version for version, path in ((4, "net/ipv4"), (6, "net/ipv6/conf")) if facts.exists(SYSCTLS / path)}
    if missing := sorted(wanted - floor):
        return fail(_("no 'unreachable' route below: IPv{names}").format(names=", IPv".join(map(str, missing))))
    return ok(_("table {number}, {count} routes").format(number=names.ROUTE_TABLE, count=len(routes)))


@check("routes.default", mark("The route into the tunnel exists only while it is open"), RESTART)
def default(facts: Facts) -> Outcome:
    """Does the default route through the TUN match the state?"""
    versions = {
        route.version
        for route in facts.network.routes
        if route.table == names.ROUTE_TABLE and route.type != RTN_UNREACHABLE and route.destination.endswith("/0")
    }
    if facts.state == OPEN and 4 not in versions:
        return fail(_("the service is open, but there is no IPv4 route into the tunnel"))
    if facts.state not in {OPEN, None} and versions:
        return fail(_("the service is not open, but there is a route into the tunnel"))
    shown = ", ".join(f"IPv{version}" for version in sorted(versions))
    return ok(_("open for {names}").format(names=shown) if versions else _("closed"))


@check(
    "routes.main-table",
    mark("No other table leads into the tunnel"),
    mark("Remove the route, and find out which program made it: ip route show table all"),
)
def main_table(facts: Facts) -> Outcome:
    """A default route through the TUN in the main table would cut the core off from its server."""
    tun = facts.tun
    found = [
        f"{route.destination} (table {route.table})"
        for route in facts.network.routes
        if route.device == tun.index and route.table != names.ROUTE_TABLE and not route.destination.startswith("ff00::")
    ]
    return fail(_("found: {names}").format(names=", ".join(found[:4]))) if found else ok(_("none"))


def _compare(facts: Facts, wanted: Mapping[str, str]) -> Outcome:
    found = {name: facts.read_sysctl(name) for name in wanted}
    wrong = [f"{name.replace('/', '.')}={found[name]}" for name in wanted if found[name] not in {None, wanted[name]}]
    if wrong:
        return fail(_("set by another program: {names}").format(names=", ".join(wrong)))
    if all(value is None for value in found.values()):
        raise Skip(_("this kernel has no such setting"))
    return ok(", ".join(f"{name.split('/', 1)[1].replace('/', '.')}={value}" for name, value in wanted.items()))


def _matching(word: str) -> dict[str, str]:
    return {name: value for name, value in GLOBAL_SYSCTLS.items() if word in name}


@check("routes.reverse-path", mark("The reverse-path check lets answers to the tunnel program in"), SYSCTL)
def reverse_path(facts: Facts) -> Outcome:
    """Without src_valid_mark=1, rp_filter drops the answers of the tunnel's server."""
    outcome = _compare(facts, _matching("src_valid_mark"))
    strict = facts.read_sysctl("net/ipv4/conf/all/rp_filter")
    return ok(f"{outcome.reason}, rp_filter={strict}") if outcome.verdict == "ok" else outcome


@check("routes.arp", mark("The kernel answers ARP for the right interface only"), SYSCTL)
def arp(facts: Facts) -> Outcome:
    """Kernel settings arp_ignore and arp_announce."""
    return _compare(facts, _matching("arp_"))


@check("routes.redirects", mark("No host on the network can redirect this machine"), SYSCTL)
def redirects(facts: Facts) -> Outcome:
    """Kernel settings accept_redirects."""
    return _compare(facts, _matching("accept_redirects"))


@check("routes.loopback", mark("The loopback network stays inside"), SYSCTL)
def loopback(facts: Facts) -> Outcome:
    """Kernel setting route_localnet."""
    return _compare(facts, _matching("route_localnet"))


@check(
    "routes.uplink",
    mark("There is a network to connect by"),
    mark("Connect a network: nothing is reachable without one."),
)
def uplink(facts: Facts) -> Outcome:
    """Is there an interface with a default route, an address and a carrier?"""
    found = facts.uplink
    if found is None:
        return warn(_("no interface has a carrier, an address and a default route"))
    versions = ", ".join(name for name, there in (("IPv4", found.ipv4), ("IPv6", found.ipv6)) if there)
    return ok(f"{found.name} ({versions})")


@check(
    "routes.lacp",
    mark("No cable needs messages that the lock stops (LACP)"),
    mark(
        "If the network does not answer, give the bond a mode without LACP, such as active-backup, or switch LACP off "
        "at the switch. The lock stops the bond's LACP messages, and a switch that requires them may block the cable."
    ),
)
def lacp(facts: Facts) -> Outcome:
    """Is there a bond in the mode 802.3ad? The kernel sends LACP's frames, and the frame guard drops them.

    Source: Documentation/networking/bonding.rst, /proc/net/bonding.
    """
    bonds = facts.list_names(BONDS)
    found = [name for name in bonds if LACP_MODE in (facts.find_text(BONDS / name) or "").splitlines()]
    if found:
        return warn(_("bonds in the mode 802.3ad: {names}").format(names=", ".join(found)))
    return ok(_("no bond in the mode 802.3ad"))


@check(
    "routes.own-networks",
    mark("No network of this machine has the tunnel's own addresses"),
    mark("Set its router, or whatever made it, to other addresses: the tunnel uses these."),
)
def own_networks(facts: Facts) -> Outcome:
    """Is an interface other than the TUN in one of the tunnel's two networks?"""
    found = find_conflicts(facts.network.snapshot)
    return fail(_("in use by: {names}").format(names=", ".join(found))) if found else ok(_("none"))


@check(
    "routes.ipv6",
    mark("IPv6 goes through the tunnel or nowhere"),
    mark("Close and check again: sudo psiphon-vpn restart"),
)
def ipv6(facts: Facts) -> Outcome:
    """Do the routes match the service's state of IPv6? Without an answer of the service it must be closed."""
    says = bool(facts.service.status.get("ipv6"))
    there = any(
        route.version == 6
        and route.table == names.ROUTE_TABLE
        and route.type != RTN_UNREACHABLE
        and route.destination == "::/0"
        for route in facts.network.routes
    )
    if there and not says:
        return fail(_("there is an IPv6 route into the tunnel, but the server has not carried IPv6 yet"))
    if says and not there:
        return fail(_("the server carries IPv6, but the route is missing"))
    return ok(_("through the tunnel") if says else _("refused: the server does not carry it, or that is not known yet"))


CHECKS: Final = (
    rules,
    strangers,
    private_table,
    default,
    main_table,
    reverse_path,
    arp,
    redirects,
    loopback,
    uplink,
    lacp,
    own_networks,
    ipv6,
)
