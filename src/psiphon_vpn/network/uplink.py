# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The uplinks that the core may use, and the wires: pure decisions on a snapshot of the links."""

import ipaddress
from dataclasses import dataclass

from psiphon_vpn.policy import names
from psiphon_vpn.policy.derive import UplinkFacts
from psiphon_vpn.policy.onlink import AddressOnLink, OnLink, find_on_link
from psiphon_vpn.policy.routing import IPV4, IPV6
from psiphon_vpn.policy.values import InterfaceName, parse_addresses, show_name

# Kinds of interface that stay on this machine, unless a default route uses them.
LOCAL_KINDS = frozenset({"veth", "bridge", "dummy", "ifb", "tun", "vcan", "nlmon", "netkit"})

TUNNEL_KINDS = frozenset({"tun", "wireguard", "ppp", "gretap", "ip6gretap", "vxlan", "geneve", "ovpn"})
"""Kinds of interface that usually belong to another VPN, besides all without an Ethernet header (ipip, gre, vti)."""
OWNERLESS_KINDS = {"macsec": "MACsec"}
"""Kinds of interface below which packets have lost their owner, with the name to show. MACsec copies most TCP packets
when it encrypts them, without their owner, and encrypts the link's plumbing as well."""
KERNEL_TUNNELS = {
    "wireguard": "WireGuard",
    "gre": "GRE",
    "gretap": "GRE",
    "ip6gre": "GRE",
    "ip6gretap": "GRE",
    "erspan": "GRE",
    "ip6erspan": "GRE",
    "ipip": "IPIP",
    "sit": "SIT",
    "ip6tnl": "IP over IPv6",
    "vti": "IPsec",
    "vti6": "IPsec",
    "xfrm": "IPsec",
    "vxlan": "VXLAN",
    "geneve": "GENEVE",
    "bareudp": "UDP",
    "ovpn": "OpenVPN",
}
"""Kinds of interface whose packets the kernel puts into others, with the name to show. Those are no TCP or UDP of
psiphon-user's, or do not leave by the uplink itself, so the lock lets none out."""
MOBILE_KINDS = frozenset({"wwan", "rmnet", "mhi_net"})


@dataclass(frozen=True, kw_only=True)
class Interface:
    """One interface as netlink describes it.

    Attributes:
        up: administratively up, and with a carrier.
        kind: IFLA_INFO_KIND; None for hardware.
        lower: index of its lower device (IFLA_LINK), as a VLAN has; None if there is none in this namespace.
        master: index of the device that it is a port of (IFLA_MASTER).
        headerless: whether its frames have no Ethernet header.
        card: whether it is hardware of this machine, so that the frame guard should be on it.
    """

    index: int
    name: str
    up: bool
    kind: str | None = None
    lower: int | None = None
    master: int | None = None
    headerless: bool = False
    card: bool = False
    addresses: tuple[tuple[int, str], ...] = ()
    """(IP version, our *place* on this link: an IPv4 address, or the /64 of an IPv6 address)."""
    on_link: tuple[AddressOnLink, ...] = ()
    """Every address of this interface with its prefix length, of any scope, tentative ones too."""


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
    """The links, addresses and default routes at one moment."""

    interfaces: tuple[Interface, ...] = ()
    defaults: tuple[DefaultRoute, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Path:
    """How one IP version leaves by an interface.

    Attributes:
        gateways: those of the default routes with the best metric, which alone are used; sorted. Empty on a link
            without neighbours.
        places: the places of our addresses there (see `Interface.addresses`), sorted.
    """

    version: int
    gateways: tuple[str, ...]
    places: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Uplink:
    """An interface that the core can be bound to, with a path for each IP version that it has.

    `choice.still_serves` decides whether a change is a network transition.
    """

    index: int
    name: InterfaceName
    paths: tuple[Path, ...]
    tunnel: bool = False
    """Most likely another VPN's: it has no card of its own."""
    stack: tuple[InterfaceName, ...] = ()
    """The wires by which its packets leave: itself and its lower devices."""
    kinds: tuple[str, ...] = ()
    """Kinds of the interfaces in the stack (IFLA_INFO_KIND), sorted; hardware has none."""

    @property
    def of_program(self) -> bool:
        """Whether a program makes it (tun(4)): what goes in, that program sends on, if nothing stops it."""
        return self.tunnel and "tun" in self.kinds

    @property
    def hops(self) -> tuple[str, ...]:
        """Every gateway that packets may use, both families."""
        return tuple(sorted({gateway for path in self.paths for gateway in path.gateways}))

    @property
    def versions(self) -> tuple[int, ...]:
        """The IP versions that it has a default route for."""
        return tuple(path.version for path in self.paths)

    @property
    def ipv4(self) -> bool:
        """Whether it leads out for IPv4."""
        return IPV4 in self.versions

    @property
    def ipv6(self) -> bool:
        """Whether it leads out for IPv6."""
        return IPV6 in self.versions

    @property
    def gateways(self) -> tuple[str, ...]:
        """IPv4 gateways: where a DHCP lease may be renewed by unicast."""
        return tuple(gateway for path in self.paths if path.version == IPV4 for gateway in path.gateways)

    @property
    def facts(self) -> UplinkFacts:
        """What rules contain of it."""
        return UplinkFacts(
            name=self.name,
            stack=self.stack,
            gateways=parse_addresses(self.hops),
            dhcp_servers=parse_addresses(self.gateways),
            versions=self.versions,
        )


def _is_loopback_or_tun(interface: Interface) -> bool:
    """Whether it is loopback (by index, as in the rules) or the TUN (by name and kind: a card can have the name)."""
    return interface.index == names.LOOPBACK_INDEX or (interface.name == names.TUN_NAME and interface.kind == "tun")


def _find_places(snapshot: Snapshot, interface: Interface, version: int) -> tuple[str, ...]:
    """The places of our addresses on this link (see `Interface.addresses`).

    A point-to-point link may have no address of its own: the kernel then uses one of another interface
    (inet_select_addr(), ipv6_dev_get_saddr()). On a link with neighbours that would not work.
    """
    own = tuple(sorted({place for kind, place in interface.addresses if kind == version}))
    if own or not interface.headerless:
        return own
    others = (link for link in snapshot.interfaces if link.up and not _is_loopback_or_tun(link))
    return tuple(sorted({place for link in others for kind, place in link.addresses if kind == version}))


def find_stack(snapshot: Snapshot, interface: Interface) -> list[Interface]:
    """An interface and all its lower devices: the card of a VLAN, the ports of a bridge or a bond, and so on."""
    by_index: dict[int, Interface] = {}
    ports: dict[int, list[Interface]] = {}
    for link in snapshot.interfaces:
        by_index[link.index] = link
        if link.master is not None:
            ports.setdefault(link.master, []).append(link)
    found = {interface.index: interface}
    fresh = [interface]
    while fresh:
        above = fresh.pop()
        below = [*ports.get(above.index, ())]
        if above.lower in by_index and above.kind not in LOCAL_KINDS:
            below.append(by_index[above.lower])
        for link in below:
            if link.index not in found:
                found[link.index] = link
                fresh.append(link)
    return list(found.values())


def _is_tunnel(interface: Interface) -> bool:
    """Whether it is most likely another VPN's, and not above a card.

    A mobile card without Ethernet has no kind, or one of its driver.
    """
    if interface.kind in TUNNEL_KINDS:
        return True
    return interface.headerless and interface.kind is not None and interface.kind not in MOBILE_KINDS


def list_uplinks(snapshot: Snapshot) -> tuple[Uplink, ...]:
    """Every interface with a default route, a carrier and an address, the best first.

    Cards, and devices above them, come before tunnels, IPv4 before IPv6, and then the lowest metric wins.

    Interfaces with an odd name (`find_odd_wires`) are left out: the core is bound by name, and nobody chooses such a
    name with good intent. So are those above a device that hides the owners of packets (`find_ownerless_uplink`), and
    tunnels of the kernel's own over a card (`find_tunnelled_uplink`).
    """
    by_index = {interface.index: interface for interface in snapshot.interfaces}
    usable = [
        route
        for route in snapshot.defaults
        if (interface := by_index.get(route.index)) is not None
        and interface.up
        and not _is_loopback_or_tun(interface)
        and interface.name != names.TUN_NAME  # a card with the TUN's name: the rules refuse what would leave by it
        and all(InterfaceName.of(link.name) for link in find_stack(snapshot, interface))
        and not any(link.kind in OWNERLESS_KINDS for link in find_stack(snapshot, interface))
        and _find_kernel_tunnel(snapshot, interface) is None
        and _find_places(snapshot, interface, route.version)
    ]
    ranks: dict[int, tuple[bool, int, int, int]] = {}
    for route in usable:
        rank = (_is_tunnel(by_index[route.index]), route.version, route.metric, route.index)
        ranks[route.index] = min(rank, ranks.get(route.index, rank))
    return tuple(
        Uplink(
            index=index,
            name=InterfaceName(by_index[index].name),
            paths=_find_paths(snapshot, by_index[index], [route for route in usable if route.index == index]),
            tunnel=ranks[index][0],
            stack=_find_wire_stack(snapshot, by_index[index]),
            kinds=tuple(sorted({link.kind for link in find_stack(snapshot, by_index[index]) if link.kind})),
        )
        for index in sorted(ranks, key=lambda index: ranks[index])
    )


def _find_wire_stack(snapshot: Snapshot, interface: Interface) -> tuple[InterfaceName, ...]:
    out = set(find_wires(snapshot))
    return tuple(sorted(InterfaceName(link.name) for link in find_stack(snapshot, interface) if link.name in out))


def has_odd_uplink(snapshot: Snapshot) -> bool:
    """Whether a default route uses an interface that `list_uplinks` leaves out because of a name."""
    routed = {route.index for route in snapshot.defaults}
    return any(
        link.up
        and link.index != names.LOOPBACK_INDEX
        and not all(InterfaceName.of(below.name) for below in find_stack(snapshot, link))
        for link in snapshot.interfaces
        if link.index in routed
    )


def find_ownerless_uplink(snapshot: Snapshot) -> str | None:
    """The interface with a default route that `list_uplinks` leaves out because packets below it have no owner.

    Returns:
        Its name and its technology, to be shown; None if there is none.
    """
    routed = {route.index for route in snapshot.defaults}
    for link in snapshot.interfaces:
        if link.index not in routed or not link.up:
            continue
        forms = [OWNERLESS_KINDS[below.kind] for below in find_stack(snapshot, link) if below.kind in OWNERLESS_KINDS]
        if forms:
            return f"{show_name(link.name)}, {forms[0]}"
    return None


def _find_kernel_tunnel(snapshot: Snapshot, interface: Interface) -> str | None:
    """The technology of a kernel's tunnel by which all packets of an interface leave, if that goes by a card here.

    Without another way out in this network namespace its own packets leave from another one, which no rule here
    concerns: WireGuard, for example, stays in the namespace where it was made.
    """
    by_index = {link.index: link for link in snapshot.interfaces}
    below: Interface | None = interface
    passed: set[int] = set()
    while below is not None and below.index not in passed:
        if below.kind in KERNEL_TUNNELS:
            return KERNEL_TUNNELS[below.kind] if any(map(_carries_packets, snapshot.interfaces)) else None
        passed.add(below.index)
        below = None if below.lower is None or below.kind in LOCAL_KINDS else by_index.get(below.lower)
    return None


def _carries_packets(interface: Interface) -> bool:
    """Whether packets of a tunnel may leave the machine by it."""
    stays = interface.kind in {"vrf", *LOCAL_KINDS, *KERNEL_TUNNELS} or interface.lower is not None
    return interface.up and not stays and not _is_loopback_or_tun(interface)


def find_tunnelled_uplink(snapshot: Snapshot) -> str | None:
    """The interface with a default route that `list_uplinks` leaves out because a tunnel of the kernel's carries it.

    Returns:
        Its name and its technology, to be shown; None if there is none.
    """
    routed = {route.index for route in snapshot.defaults}
    for link in snapshot.interfaces:
        if link.index in routed and link.up and (form := _find_kernel_tunnel(snapshot, link)) is not None:
            return f"{show_name(link.name)}, {form}"
    return None


def find_vrf_uplink(snapshot: Snapshot) -> str | None:
    """An interface with an address that is in a VRF, whose routes are not in the main table. Its name, to be shown."""
    tables = {link.index for link in snapshot.interfaces if link.kind == "vrf"}
    within = (link for link in snapshot.interfaces if link.master in tables and link.up and link.addresses)
    return next((show_name(link.name) for link in within), None)


def find_conflicts(snapshot: Snapshot) -> tuple[str, ...]:
    """Names of the interfaces with a network or a gateway among the tunnel's own addresses.

    A gateway with the TUN's address cannot be used: to the kernel it is this machine itself. Packets to the other
    addresses enter the tunnel.
    """
    gateways = {route.index: route.gateway for route in snapshot.defaults if route.gateway and is_ours(route.gateway)}
    return tuple(
        sorted(
            link.name
            for link in snapshot.interfaces
            if link.up
            and not _is_loopback_or_tun(link)
            and (link.index in gateways or any(is_ours(place) for _, place in link.addresses))
        )
    )


def is_ours(place: str) -> bool:
    """Whether an address or a network overlaps one of the tunnel's subnets."""
    found = ipaddress.ip_network(place, strict=False)
    return any(
        found.overlaps(ipaddress.ip_network(own))
        for own in (names.TUN_IPV4_SUBNET, names.TUN_IPV6_SUBNET)
        if ipaddress.ip_network(own).version == found.version
    )


def _find_paths(snapshot: Snapshot, interface: Interface, routes: list[DefaultRoute]) -> tuple[Path, ...]:
    paths = []
    for version in (IPV4, IPV6):
        own = [route for route in routes if route.version == version]
        if own:
            best = min(route.metric for route in own)
            gateways = {route.gateway for route in own if route.gateway and route.metric == best}
            places = _find_places(snapshot, interface, version)
            paths.append(Path(version=version, gateways=tuple(sorted(gateways)), places=places))
    return tuple(paths)


def choose_uplink(snapshot: Snapshot, named: str = "") -> Uplink | None:
    """The uplink to try first: the named one and no other, or the best."""
    return next((uplink for uplink in list_uplinks(snapshot) if uplink.name == (named or uplink.name)), None)


def find_outbound(snapshot: Snapshot, before: frozenset[int] = frozenset()) -> frozenset[int]:
    """Indexes of the interfaces that have a default route, or had one (`before`) and still exist.

    They stay in: if a guard went with its route, it would come back a moment too late.
    """
    there = {interface.index for interface in snapshot.interfaces}
    return frozenset({route.index for route in snapshot.defaults} | (before & there))


def _list_outward(snapshot: Snapshot, outbound: frozenset[int] | None) -> list[Interface]:
    """The interfaces that lead out of the machine: these carry the egress guard.

    Hardware and devices above it (VLAN, bond, PPP, WWAN, macvlan...); one of `LOCAL_KINDS` only if it leads out.
    """
    leads = find_outbound(snapshot) if outbound is None else outbound
    return [
        interface
        for interface in snapshot.interfaces
        if not _is_loopback_or_tun(interface) and (interface.kind not in LOCAL_KINDS or interface.index in leads)
    ]


def find_wires(snapshot: Snapshot, outbound: frozenset[int] | None = None) -> tuple[InterfaceName, ...]:
    """Names of the interfaces that lead out of the machine, without those with an odd name.

    Args:
        snapshot: the links.
        outbound: indexes of those that lead out (`find_outbound`); None: those that do now.
    """
    found = (InterfaceName.of(interface.name) for interface in _list_outward(snapshot, outbound))
    return tuple(sorted(name for name in found if name is not None))


def find_cards(snapshot: Snapshot) -> tuple[str, ...]:
    """Names of the machine's cards, odd ones too: as psiphon-guard finds them (`resources/guard.sh`)."""
    return tuple(sorted(interface.name for interface in snapshot.interfaces if interface.card))


def find_odd_wires(snapshot: Snapshot, outbound: frozenset[int] | None = None) -> tuple[str, ...]:
    """Names of the wires that no rule can contain because of their form. Arguments as for `find_wires`."""
    found = _list_outward(snapshot, outbound)
    return tuple(sorted(interface.name for interface in found if InterfaceName.of(interface.name) is None))


def find_container_interfaces(
    snapshot: Snapshot, outbound: frozenset[int] | None = None
) -> tuple[InterfaceName, ...] | None:
    """Names of the interfaces that do not lead out; None if rules can name every wire (see `find_odd_wires`)."""
    out = _list_outward(snapshot, outbound)
    if all(InterfaceName.of(interface.name) for interface in out):
        return None
    outside = {interface.name for interface in out}
    inner = (link for link in snapshot.interfaces if not _is_loopback_or_tun(link) and link.name not in outside)
    found = (InterfaceName.of(link.name) for link in inner)
    return tuple(sorted(name for name in found if name is not None))


def find_headerless(snapshot: Snapshot, outbound: frozenset[int] | None = None) -> tuple[InterfaceName, ...]:
    """Names of the wires whose frames have no Ethernet header. Arguments as for `find_wires`."""
    headerless = {link.name for link in snapshot.interfaces if link.headerless}
    return tuple(name for name in find_wires(snapshot, outbound) if name in headerless)


def find_neighbourhood(snapshot: Snapshot, outbound: frozenset[int] | None = None) -> OnLink:
    """The neighbours that the kernel may talk to, on the wires and to guests. Arguments as for `find_wires`."""
    out = _list_outward(snapshot, outbound)
    within = (link for link in snapshot.interfaces if link not in out and not _is_loopback_or_tun(link))
    return find_on_link(
        (address for link in out for address in link.on_link),
        parse_addresses({route.gateway for route in snapshot.defaults if route.gateway}),
        guests=(address for link in within for address in link.on_link),
    )
