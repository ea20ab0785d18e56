"""What is on the links that lead out: our own addresses there, and whom we may speak to without a router. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeGuard

from psiphon_vpn.policy.values import Address, is_plain_address

AddressOnLink = ipaddress.IPv4Interface | ipaddress.IPv6Interface

SOLICITED_NODE = int(ipaddress.IPv6Address("ff02::1:ff00:0"))
"""The prefix of the solicited-node groups; the last 24 bits are those of the address (RFC 4291 2.7.1)."""
SHORTEST_IPV4 = 8
"""bits. No wider, whatever a DHCP server says: the widest network that is a link's own is 10.0.0.0/8 (RFC 1918)."""
PREFIX_LENGTH = 64
"""bits. A link's IPv6 prefix is taken for no wider than this, whatever a router advertises: it could advertise the
whole internet (TunnelCrack, CVE-2023-36672), and 64 is what hosts make their addresses in (RFC 4291 2.5.1)."""


@dataclass(frozen=True, kw_only=True)
class OnLink:
    """The addresses that neighbour discovery, MLD and ARP may name.

    Attributes:
        own_ipv4: our own IPv4 addresses: ARP is asked and answered with no other.
        networks_ipv4: the IPv4 networks of the links, and gateways outside of them.
        networks_ipv6: the IPv6 prefixes of the links, 64 bits each, and those of gateways outside of them.
        groups: the solicited-node groups of our own IPv6 addresses.
        guests_ipv6: the IPv6 prefixes of the interfaces that lead to guests of this machine (containers, virtual
            machines), which find us there by neighbour discovery. No card is told of them.
    """

    own_ipv4: tuple[ipaddress.IPv4Address, ...] = ()
    networks_ipv4: tuple[ipaddress.IPv4Network, ...] = ()
    networks_ipv6: tuple[ipaddress.IPv6Network, ...] = ()
    groups: tuple[ipaddress.IPv6Address, ...] = ()
    guests_ipv6: tuple[ipaddress.IPv6Network, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what could not stand in a rule.

        Raises:
            ValueError: it could not.
        """
        networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = [
            *self.networks_ipv4,
            *self.networks_ipv6,
            *self.guests_ipv6,
        ]
        if not all(isinstance(network, ipaddress.IPv4Network | ipaddress.IPv6Network) for network in networks):
            raise ValueError("a network that was not checked")
        addresses = (*self.own_ipv4, *self.groups, *(network.network_address for network in networks))
        if not all(is_plain_address(address) for address in addresses):
            raise ValueError("an address that was not checked")


NOTHING = OnLink()
"""Where no link is known: nobody but those of link scope may be spoken to."""


def find_on_link(
    addresses: Iterable[AddressOnLink], gateways: Iterable[Address], *, guests: Iterable[AddressOnLink] = ()
) -> OnLink:
    """Sort out what netlink tells of the links that lead out.

    Args:
        addresses: our own there, with the lengths of their prefixes. Tentative ones too: they are being announced.
        gateways: of the default routes. One may be outside of every prefix ("onlink", common in data centres).
        guests: our addresses on the interfaces that lead to guests of this machine.
    """
    own, networks4, networks6, groups = set(), set(), set(), set()
    for address in addresses:
        if isinstance(address, ipaddress.IPv4Interface):
            own.add(address.ip)
            networks4.add(
                ipaddress.IPv4Network((address.ip, max(SHORTEST_IPV4, address.network.prefixlen)), strict=False)
            )
        elif not address.is_multicast:
            networks6.add(_find_prefix(address.ip))
            groups.add(ipaddress.IPv6Address(SOLICITED_NODE | (int(address.ip) & 0xFFFFFF)))
    for gateway in gateways:
        if gateway.is_multicast:
            continue  # nobody has one
        if isinstance(gateway, ipaddress.IPv6Address):
            networks6.add(_find_prefix(gateway))
        elif not any(gateway in network for network in networks4):
            networks4.add(ipaddress.IPv4Network(gateway))
    return OnLink(
        own_ipv4=tuple(sorted(own)),
        networks_ipv4=tuple(ipaddress.collapse_addresses(networks4)),
        networks_ipv6=tuple(sorted(networks6)),
        groups=tuple(sorted(groups)),
        guests_ipv6=tuple(sorted({_find_prefix(guest.ip) for guest in guests if _is_global_ipv6(guest)})),
    )


def _is_global_ipv6(address: AddressOnLink) -> TypeGuard[ipaddress.IPv6Interface]:
    return isinstance(address, ipaddress.IPv6Interface) and not address.is_link_local


def _find_prefix(address: ipaddress.IPv6Address) -> ipaddress.IPv6Network:
    # By its number: a scope ("fe80::1%eth0") is no part of it.
    return ipaddress.IPv6Network((int(address) >> PREFIX_LENGTH << PREFIX_LENGTH, PREFIX_LENGTH))
