"""Which way the core goes out: the uplink, and its egress identity. Pure decisions on a snapshot of the links."""

from dataclasses import dataclass, field

from psiphon_vpn.policy import names
from psiphon_vpn.policy.routing import IPV4, IPV6
from psiphon_vpn.policy.values import InterfaceName

# Kinds of interface that lead to something on this machine itself, unless a default route says otherwise.
INNER_KINDS = frozenset({"veth", "bridge", "dummy", "ifb", "tun", "vcan", "nlmon", "netkit"})


@dataclass(frozen=True, kw_only=True)
class Interface:
    """One interface as netlink describes it.

    Attributes:
        up: administratively up, and with a carrier.
        kind: IFLA_INFO_KIND, None for hardware.
        headerless: its frames have no Ethernet header.
    """

    index: int
    name: str
    up: bool
    kind: str | None = None
    headerless: bool = False
    addresses: tuple[tuple[int, str], ...] = ()
    """(IP version, what identifies our place on this link: an IPv4 address, or the /64 of an IPv6 one)."""


@dataclass(frozen=True, kw_only=True)
class DefaultRoute:
    """A default route of the main table."""

    version: int
    index: int
    gateway: str | None
    metric: int
    source: str | None = None


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The links, addresses and default routes of a moment."""

    interfaces: tuple[Interface, ...] = ()
    defaults: tuple[DefaultRoute, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Uplink:
    """The interface that the core is bound to, with its egress identity: when it changes, that is a transition.

    A DHCP renewal, or a new temporary IPv6 address of the same prefix, changes nothing of it.
    """

    index: int
    name: InterfaceName
    paths: tuple[tuple[int, str | None, tuple[str, ...]], ...]
    """Per IP version: gateway, and the places that our addresses give us there."""
    hops: tuple[str, ...] = field(compare=False, default=())
    """Every gateway that packets may go by: of the default routes with the best metric, both families. One more of them
    is no transition, but the rules name them."""
    ipv4: bool = field(compare=False, default=False)
    ipv6: bool = field(compare=False, default=False)

    @property
    def gateways(self) -> tuple[str, ...]:
        """IPv4 gateways: where a DHCP lease may be renewed by unicast."""
        return tuple(gateway for version, gateway, _ in self.paths if version == IPV4 and gateway is not None)


def _find_places(snapshot: Snapshot, interface: Interface, version: int) -> tuple[str, ...]:
    """Where our addresses put us on this link.

    A point-to-point link may have no address of its own: the kernel then takes one of another interface
    (inet_select_addr(), ipv6_dev_get_saddr()). On a link with neighbours that would lead nowhere.
    """
    own = tuple(sorted({place for kind, place in interface.addresses if kind == version}))
    if own or not interface.headerless:
        return own
    others = (link for link in snapshot.interfaces if link.up and link.name not in {"lo", names.TUN_NAME})
    return tuple(sorted({place for link in others for kind, place in link.addresses if kind == version}))


def choose_uplink(snapshot: Snapshot) -> Uplink | None:
    """The best interface with a default route, a carrier and an address; the lowest metric wins, IPv4 before IPv6.

    Never one whose name is not of the usual form (`find_odd_wires`): the core is told a name, and whoever could choose
    such a one means no good.
    """
    by_index = {interface.index: interface for interface in snapshot.interfaces}
    usable = [
        route
        for route in snapshot.defaults
        if (interface := by_index.get(route.index)) is not None
        and interface.up
        and interface.name not in {"lo", names.TUN_NAME}
        and InterfaceName.of(interface.name) is not None
        and _find_places(snapshot, interface, route.version)
    ]
    if not usable:
        return None
    best = min(usable, key=lambda route: (route.version, route.metric, route.index))
    interface = by_index[best.index]
    paths = []
    hops: set[str] = set()
    for version in (IPV4, IPV6):
        routes = sorted(
            (route for route in usable if route.index == best.index and route.version == version),
            key=lambda route: (route.metric, route.gateway or ""),
        )
        if routes:
            paths.append((version, routes[0].gateway, _find_places(snapshot, interface, version)))
            # What has a worse metric is not gone by.
            hops |= {route.gateway for route in routes if route.gateway and route.metric == routes[0].metric}
    versions = {version for version, _, _ in paths}
    return Uplink(
        index=interface.index,
        name=InterfaceName(interface.name),
        paths=tuple(paths),
        hops=tuple(sorted(hops)),
        ipv4=IPV4 in versions,
        ipv6=IPV6 in versions,
    )


def find_leading(snapshot: Snapshot, before: frozenset[int] = frozenset()) -> frozenset[int]:
    """Indexes of the interfaces that have a default route, or had one (`before`) and are still there.

    One that led out once leads out: its guard must not go because its route does, and come back a moment too late.
    """
    there = {interface.index for interface in snapshot.interfaces}
    return frozenset({route.index for route in snapshot.defaults} | (before & there))


def _find_leading_out(snapshot: Snapshot, leading: frozenset[int] | None) -> list[Interface]:
    """The interfaces that lead out of the machine: these carry the egress guard.

    Hardware, and what stands for it (VLAN, bond, PPP, WWAN, macvlan...); an inner kind only where it leads out.
    """
    leads = find_leading(snapshot) if leading is None else leading
    return [
        interface
        for interface in snapshot.interfaces
        if interface.name not in {"lo", names.TUN_NAME}
        and (interface.kind not in INNER_KINDS or interface.index in leads)
    ]


def find_wires(snapshot: Snapshot, leading: frozenset[int] | None = None) -> tuple[InterfaceName, ...]:
    """Names of the interfaces that lead out of the machine, but for odd ones.

    Args:
        snapshot: the links.
        leading: what leads out (`find_leading`); None for what does now.
    """
    found = (InterfaceName.of(interface.name) for interface in _find_leading_out(snapshot, leading))
    return tuple(sorted(name for name in found if name is not None))


def find_odd_wires(snapshot: Snapshot, leading: frozenset[int] | None = None) -> tuple[int, ...]:
    """Indexes of those whose names are not of the usual form, and stand in no rule. Arguments as for `find_wires`."""
    found = _find_leading_out(snapshot, leading)
    return tuple(sorted(interface.index for interface in found if InterfaceName.of(interface.name) is None))


def find_headerless(snapshot: Snapshot, leading: frozenset[int] | None = None) -> tuple[InterfaceName, ...]:
    """Names of the wires whose frames have no Ethernet header. Arguments as for `find_wires`."""
    headerless = {link.name for link in snapshot.interfaces if link.headerless}
    return tuple(name for name in find_wires(snapshot, leading) if name in headerless)
