# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The second wall (R9): a private routing table whose only way out is the TUN, and the rules that lead there.

Why it is built like this (each point is covered by a test with rp_filter 0, 1 and 2):

* A default route through the TUN in the *main* table would break the core, which is bound to the uplink and would
  find no route there. So the main table stays as the network manager made it, and rules decide who may use it.
* A socket that is bound to the TUN (the service's own check of the resolver) uses the private table.
* Sockets of psiphon-user use the main table (`uidrange`), all others the private one.
* The reverse-path check of an arriving packet looks up the interface for an answer without a uid, and would find the
  TUN. The base table marks packets that arrive on a wire, and one rule sends *marked lookups of the machine itself*
  (`iif lo`: the check is one, forwarding is not) to the main table. This needs `src_valid_mark=1` (kernel
  documentation, ip-sysctl).
* Packets from the tunnel to a container are routed by the main table, which has the container's subnet.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from psiphon_vpn.policy import names
from psiphon_vpn.policy.model import Identity

IPV4, IPV6 = 4, 6
MAIN_TABLE, LOCAL_TABLE = 254, 255
MARK_MASK = 0xFFFFFFFF
RULE_PRIORITIES = range(names.RULE_PRIORITY, names.RULE_PRIORITY + 7)
"""The priorities of our routing rules; any other rule with one of them is another program's."""


SAMPLE_DESTINATIONS = {IPV4: ("9.9.9.9", "198.41.0.4"), IPV6: ("2001:503:ba3e::2:30",)}
"""Destinations for test lookups of routes, in both halves of IPv4 (VPNs route by halves). Nothing is sent there."""


@dataclass(frozen=True, kw_only=True)
class RoutingRule:
    """One routing rule (ip-rule(8)); a field that is None is not matched."""

    version: int
    priority: int
    table: int
    destination: str | None = None
    input_interface: str | None = None
    output_interface: str | None = None
    fwmark: int | None = None
    uid_range: tuple[int, int] | None = None
    protocol: int | None = None
    destination_port: int | None = None
    inverted: bool = False
    """Matches everything *but* what it names (FIB_RULE_INVERT); no rule of this service does."""
    odd: bool = False
    """Has a match or an action that no rule of this service has, and that has no field here."""


@dataclass(frozen=True, kw_only=True)
class Route:
    """One route of the private table: through the TUN, or unreachable."""

    version: int
    destination: str
    metric: int
    source: str | None = None
    unreachable: bool = False


def build_rules(
    identity: Identity, guests: Iterable[tuple[int, str]] = (), *, loopback: str = "lo"
) -> tuple[RoutingRule, ...]:
    """The rules, the same in every state.

    Args:
        identity: the user whose sockets use the main table.
        guests: IP version and network of allowed bridges (`guests.list_networks`): their routes are in the main table.
        loopback: name of the loopback device: the kernel takes no index here.
    """
    first, private = names.RULE_PRIORITY, names.ROUTE_TABLE
    uids = (identity.uid, identity.uid)
    rules: list[RoutingRule] = []
    for version, subnet, dhcp_port in ((IPV4, names.TUN_IPV4_SUBNET, 67), (IPV6, names.TUN_IPV6_SUBNET, 547)):
        rules += [
            RoutingRule(version=version, priority=first, table=private, output_interface=names.TUN_NAME),
            RoutingRule(version=version, priority=first + 1, table=private, destination=subnet),
            RoutingRule(version=version, priority=first + 2, table=MAIN_TABLE, input_interface=names.TUN_NAME),
            RoutingRule(version=version, priority=first + 3, table=MAIN_TABLE, protocol=17, destination_port=dhcp_port),
            RoutingRule(
                version=version,
                priority=first + 4,
                table=MAIN_TABLE,
                input_interface=loopback,
                fwmark=names.CORE_MARK,
            ),
            RoutingRule(version=version, priority=first + 5, table=MAIN_TABLE, uid_range=uids),
            RoutingRule(version=version, priority=first + 6, table=private),
        ]
    rules += [
        RoutingRule(version=version, priority=first + 3, table=MAIN_TABLE, destination=network)
        for version, network in guests
    ]
    return tuple(rules)


def build_routes(
    *, tun: bool, open_ipv4: bool, open_ipv6: bool, ipv6_probe: tuple[str, ...] = (), ipv6: bool = True
) -> tuple[Route, ...]:
    """The routes of the private table.

    Args:
        tun: whether the TUN exists.
        open_ipv4: whether applications may use it; otherwise they fail at once with "no route to host".
        open_ipv6: the same for IPv6, which not every Psiphon server carries.
        ipv6_probe: servers that the service queries to find out whether the tunnel carries IPv6.
        ipv6: whether the TUN has IPv6. Otherwise IPv6 is unreachable.
    """
    routes: list[Route] = []
    for version, subnet, address, is_open in (
        (IPV4, names.TUN_IPV4_SUBNET, names.TUN_IPV4, open_ipv4),
        (IPV6, names.TUN_IPV6_SUBNET, names.TUN_IPV6, open_ipv6),
    ):
        default = "0.0.0.0/0" if version == IPV4 else "::/0"
        if tun and (version == IPV4 or ipv6):
            routes.append(Route(version=version, destination=subnet, metric=names.ROUTE_METRIC, source=address))
            if is_open:
                routes.append(Route(version=version, destination=default, metric=names.ROUTE_METRIC, source=address))
            if version == IPV6:
                routes += [
                    Route(version=version, destination=f"{server}/128", metric=names.ROUTE_METRIC, source=address)
                    for server in sorted(set(ipv6_probe))
                ]
        routes.append(Route(version=version, destination=default, metric=names.UNREACHABLE_METRIC, unreachable=True))
    return tuple(routes)
