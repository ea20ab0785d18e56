"""The second wall (R9): a private routing table whose only way out is the TUN, and the rules that lead there.

Why it is built like this (each line is covered by a test with rp_filter 0, 1 and 2):

* A default route through the TUN in the *main* table would break the core, which is bound to the uplink and would
  find no route there. So the main table stays as the network manager made it, and rules decide who may see it.
* A socket that is bound to the TUN (the service's own question to the resolver) looks into the private table.
* Sockets of psiphon-user look into the main table (`uidrange`), all others into the private one.
* The reverse-path check of a packet that arrives asks "which interface would I use to answer?" without a uid, and
  would find the TUN. The base table puts a mark on packets that arrive by a wire, and one rule sends *marked lookups
  of the machine itself* (`iif lo`: the check is one, forwarding is not) to the main table. It takes
  `src_valid_mark=1` (kernel documentation, ip-sysctl).
* What comes out of the tunnel for a container is routed by the main table, where the container's subnet is.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from psiphon_vpn.policy import names
from psiphon_vpn.policy.model import Identity

IPV4, IPV6 = 4, 6
MAIN_TABLE, LOCAL_TABLE = 254, 255
MARK_MASK = 0xFFFFFFFF
RULE_PRIORITIES = range(names.RULE_PRIORITY, names.RULE_PRIORITY + 7)
"""The priorities of our routing rules; whatever else stands there is a stranger's."""


SAMPLE_DESTINATIONS = {IPV4: ("9.9.9.9", "198.41.0.4"), IPV6: ("2001:503:ba3e::2:30",)}
"""What the kernel is asked the way to, on both halves of IPv4 (VPNs route by halves). Nothing is sent there."""


@dataclass(frozen=True, kw_only=True)
class RoutingRule:
    """One routing rule (ip-rule(8)); what is None is not matched."""

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
    """Matches what it says *not* (FIB_RULE_INVERT); none of ours does."""
    odd: bool = False
    """Has a match or an action that none of ours has, and that is not told here."""


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
        identity: whose sockets see the main table.
        guests: IP version and network of allowed bridges (`guests.list_networks`): the main table knows the way there.
        loopback: what the loopback device is called: the kernel takes no index here.
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
        open_ipv4: whether applications may use it; while not, they fail at once with "no route to host".
        open_ipv6: the same for IPv6, which not every Psiphon server carries.
        ipv6_probe: where the service itself asks whether it does.
        ipv6: whether the TUN has IPv6. Where not, IPv6 is unreachable.
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
