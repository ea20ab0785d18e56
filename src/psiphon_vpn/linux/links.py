# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A snapshot of links, addresses and default routes, read by netlink."""

import ipaddress

from psiphon_vpn.linux.rtlist import list_addresses, list_links, list_routes
from psiphon_vpn.linux.rtvalues import IFF_LOWER_UP, IFF_UP, Address, KernelRoute
from psiphon_vpn.network.uplink import DefaultRoute, Interface, Snapshot
from psiphon_vpn.policy.onlink import AddressOnLink
from psiphon_vpn.policy.routing import IPV4, IPV6, MAIN_TABLE

ARPHRD_ETHER = 1
RT_SCOPE_UNIVERSE = 0
RTN_UNICAST = 1
IFA_F_TENTATIVE, IFA_F_DADFAILED = 0x40, 0x08


async def read_snapshot() -> Snapshot:
    """The links as they are now.

    Raises:
        OSError: the kernel does not answer, or they never stopped changing.
    """
    addresses: dict[int, set[tuple[int, str]]] = {}
    on_link: dict[int, set[AddressOnLink]] = {}
    for address in await list_addresses():
        on_link.setdefault(address.index, set()).add(ipaddress.ip_interface(f"{address.text}/{address.prefix}"))
        if address.scope == RT_SCOPE_UNIVERSE and not address.flags & (IFA_F_TENTATIVE | IFA_F_DADFAILED):
            addresses.setdefault(address.index, set()).add(find_place(address))
    interfaces = tuple(
        Interface(
            index=link.index,
            name=link.name,
            up=bool(link.flags & IFF_UP) and bool(link.flags & IFF_LOWER_UP),
            kind=link.kind,
            lower=link.lower,
            master=link.master,
            headerless=link.hardware != ARPHRD_ETHER,
            card=link.card,
            addresses=tuple(sorted(addresses.get(link.index, ()))),
            on_link=tuple(sorted(on_link.get(link.index, ()), key=str)),
        )
        for link in await list_links()
    )
    defaults: list[DefaultRoute] = []
    for version in (IPV4, IPV6):
        for route in await list_routes(version, table=MAIN_TABLE, defaults=True):
            if route.type == RTN_UNICAST:
                defaults += _read_default(route)
    return Snapshot(interfaces=interfaces, defaults=tuple(defaults))


def find_place(address: Address) -> tuple[int, str]:
    """The version, and where an address puts the machine: an IPv6 address changes often, its prefix of 64 bits not."""
    if address.version == IPV4:
        return IPV4, address.text
    return IPV6, str(ipaddress.IPv6Network((address.text, 64), strict=False))


def _read_default(route: KernelRoute) -> list[DefaultRoute]:
    found = []
    for hop in route.hops:
        if hop.device is not None:
            # No rule of this IP version can name a gateway of the other one (RFC 5549).
            own = hop.gateway is not None and (":" in hop.gateway) == (route.version == IPV6)
            found.append(
                DefaultRoute(
                    version=route.version,
                    index=hop.device,
                    gateway=hop.gateway if own else None,
                    metric=route.metric,
                    source=route.source,
                )
            )
    return found
