# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What is on the links that lead out: our own addresses, and the networks reached without a router. Pure."""

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
"""bits. No network is taken to be wider, whatever DHCP says: the widest private one is 10.0.0.0/8 (RFC 1918)."""
PREFIX_LENGTH = 64
"""bits. No IPv6 prefix is taken to be wider, whatever a router advertises: it could advertise the whole internet
(TunnelCrack, CVE-2023-36672), and hosts form their addresses in 64 bits (RFC 4291 2.5.1)."""


@dataclass(frozen=True, kw_only=True)
class OnLink:
    """The addresses that neighbour discovery, MLD and ARP may name.

    Attributes:
        own_ipv4: our own IPv4 addresses: ARP requests and replies may contain no other as their sender.
        networks_ipv4: the IPv4 networks of the links, and gateways outside them.
        networks_ipv6: the IPv6 prefixes of the links, 64 bits each, and those of gateways outside them.
        groups: the solicited-node groups of our own IPv6 addresses.
        guests_ipv6: the IPv6 prefixes of the interfaces that lead to guests of this machine (containers, virtual
            machines), which find us there by neighbour discovery. The guards of cards do not allow them.
    """

    own_ipv4: tuple[ipaddress.IPv4Address, ...] = ()
    networks_ipv4: tuple[ipaddress.IPv4Network, ...] = ()
    networks_ipv6: tuple[ipaddress.IPv6Network, ...] = ()
    groups: tuple[ipaddress.IPv6Address, ...] = ()
    guests_ipv6: tuple[ipaddress.IPv6Network, ...] = ()

    def __post_init__(self) -> None:
        """Refuse values that must not appear in a rule.

        Raises:
            ValueError: one must not.
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
"""No link is known: the kernel may talk to link-local addresses only."""


def find_on_link(
    addresses: Iterable[AddressOnLink], gateways: Iterable[Address], *, guests: Iterable[AddressOnLink] = ()
) -> OnLink:
    """Derive it from what netlink lists for the links that lead out.

    Args:
        addresses: our own, with prefix lengths. Tentative ones too: they are being announced.
        gateways: those of the default routes. One may be outside every prefix ("onlink", common in data centres).
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
            continue  # no host has a multicast address
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
    # As a number: a scope ("fe80::1%eth0") is no part of it.
    return ipaddress.IPv6Network((int(address) >> PREFIX_LENGTH << PREFIX_LENGTH, PREFIX_LENGTH))
