# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A bridge whose guests this machine may talk to, because root allowed it. Pure.

Its rules are in `render_guests`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from psiphon_vpn.policy import names
from psiphon_vpn.policy.onlink import AddressOnLink
from psiphon_vpn.policy.values import is_plain_address

GUEST_KINDS: Final = ("veth", "tun")
"""Kinds of ports that lead to a guest: one end of a pair whose other end is in a container, and a virtual machine's
TAP, which has the kind `tun` in the kernel (drivers/net/tun.c)."""
GUEST_IPV4: Final = ("10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16")
GUEST_IPV6: Final = ("fc00::/7",)
"""Ranges for a bridge's networks, which are not routed on the internet (RFC 1918, RFC 6598, RFC 4193)."""
LONGEST_IPV4, LONGEST_IPV6 = 30, 126
SHORTEST_IPV6 = 48
"""bits. No network of guests may be wider, whatever its address says."""


def may_hold_guests(address: AddressOnLink) -> bool:
    """Whether guests may be on the network of this bridge address: in an allowed range, apart from the tunnel's."""
    network = address.network
    if isinstance(network, ipaddress.IPv4Network):
        fits = network.prefixlen <= LONGEST_IPV4
        own = any(network.subnet_of(ipaddress.IPv4Network(wide)) for wide in GUEST_IPV4)
        return fits and own and not network.overlaps(ipaddress.IPv4Network(names.TUN_IPV4_SUBNET))
    fits = SHORTEST_IPV6 <= network.prefixlen <= LONGEST_IPV6
    own = any(network.subnet_of(ipaddress.IPv6Network(wide)) for wide in GUEST_IPV6)
    return fits and own and not network.overlaps(ipaddress.IPv6Network(names.TUN_IPV6_SUBNET))


@dataclass(frozen=True, kw_only=True)
class GuestBridge:
    """A bridge that is in force: its index, and this machine's own addresses on it with their networks."""

    index: int
    addresses: tuple[AddressOnLink, ...]

    def __post_init__(self) -> None:
        """Refuse values that must not appear in a rule, and networks that guests may not have.

        Raises:
            ValueError: there is one.
        """
        if type(self.index) is not int or not 1 < self.index < 2**31:
            raise ValueError("not the index of a bridge")
        for address in self.addresses:
            if not isinstance(address, ipaddress.IPv4Interface | ipaddress.IPv6Interface):
                raise ValueError("an address that was not checked")
            if not is_plain_address(address.ip) or not may_hold_guests(address):
                raise ValueError("not an address of a network of guests")


def list_networks(bridges: Iterable[GuestBridge]) -> tuple[tuple[int, str], ...]:
    """IP version and network of each, for the routing rules."""
    return tuple(
        sorted({(address.version, str(address.network)) for bridge in bridges for address in bridge.addresses})
    )
