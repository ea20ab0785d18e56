"""A bridge of this machine whose guests it may talk to, because root named it: the value, and its rules. Pure.

A bridge gets a port at any moment, so no rule that knows the ports of a moment makes this safe: the bridge guard does
(`policy/guards.py`), which sees each frame as it leaves by a port. The rules here are the base table's. They are there
only while the daemon sees that guard, and finds that nothing but guests is on the bridge (`network/bridges.py`).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from psiphon_vpn.policy import names
from psiphon_vpn.policy.onlink import AddressOnLink
from psiphon_vpn.policy.ruleset import Rule
from psiphon_vpn.policy.values import InterfaceName, is_plain_address, name_by_index, quote_set

GUEST_KINDS: Final = ("veth", "tun")
"""Kinds of ports that lead to a guest: the end of a pair whose other end a container has, and a virtual machine's TAP,
which is of the kind `tun` to the kernel (drivers/net/tun.c)."""
GUEST_IPV4: Final = ("10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16")
GUEST_IPV6: Final = ("fc00::/7",)
"""Where a bridge's networks must lie: no router of the internet leads there (RFC 1918, RFC 6598, RFC 4193)."""
LONGEST_IPV4, LONGEST_IPV6 = 30, 126
SHORTEST_IPV6 = 48
"""bits. No network of guests is wider, whatever its address says."""
_ICMP, _TCP, _UDP, _ICMPV6 = 1, 6, 17, 58
_NEIGHBOURS: Final = "icmpv6 type { 134, 135, 136 } icmpv6 code 0 ip6 hoplimit 255 ip6 daddr { fe80::/10, ff02::/16 }"


def may_hold_guests(address: AddressOnLink) -> bool:
    """Whether the network of an address of a bridge is one that its guests may have, and none of the tunnel's."""
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
        """Refuse what could not stand in a rule, and every network that guests may not have.

        Raises:
            ValueError: it is such a one.
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


def _word(address: AddressOnLink) -> tuple[str, int]:
    return ("ip", _ICMP) if address.version == 4 else ("ip6", _ICMPV6)


def guest_output_rules(bridges: Iterable[GuestBridge], uid: int) -> tuple[Rule, ...]:
    """What this machine may send to guests. psiphon-user is none of those who may: it talks to its server alone."""
    rules: list[Rule] = []
    for bridge in bridges:
        out = f"oif {name_by_index(bridge.index)}"
        for address in bridge.addresses:
            word, icmp = _word(address)
            protocols = quote_set(sorted((icmp, _TCP, _UDP)))
            rules.append(
                Rule(
                    text=f"{out} {word} daddr {address.network} meta l4proto {protocols} accept",
                    comment="to guests on a bridge that root allowed",
                )
            )
        rules.append(
            Rule(
                text=f"{out} udp sport 67 udp dport 68 ip daddr 255.255.255.255 accept",
                comment="DHCP answers to guests that have no address yet",
            )
        )
        if any(address.version == 6 for address in bridge.addresses):
            rules.append(
                Rule(
                    text=f"{out} meta l4proto {_ICMPV6} {_NEIGHBOURS} accept",
                    comment="neighbour discovery and router advertisements for guests",
                )
            )
    if not rules:
        return ()
    return (Rule(text=f"meta skuid {uid} return", comment="the core talks to its server alone"), *rules)


def guest_input_rules(bridges: Iterable[GuestBridge]) -> tuple[Rule, ...]:
    """What guests may send to this machine: answers, and questions for an address and for names."""
    rules: list[Rule] = []
    for bridge in bridges:
        by = f"iif {name_by_index(bridge.index)}"
        rules += [
            Rule(
                text=f"{by} ct state established,related ct direction reply accept",
                comment="answers of guests on a bridge that root allowed",
            ),
            Rule(text=f"{by} udp sport 68 udp dport 67 accept", comment="guests ask for an address"),
        ]
        for address in bridge.addresses:
            word, _ = _word(address)
            rules.append(
                Rule(
                    text=f"{by} {word} saddr {address.network} {word} daddr {address.ip} "
                    f"meta l4proto {quote_set((_TCP, _UDP))} th dport 53 accept",
                    comment="guests ask this machine for names",
                )
            )
        if any(address.version == 6 for address in bridge.addresses):
            rules.append(
                Rule(
                    text=f"{by} meta l4proto {_ICMPV6} icmpv6 type 133 icmpv6 code 0 ip6 hoplimit 255 accept",
                    comment="guests look for a router",
                )
            )
    return tuple(rules)


def guest_wire_rules(bridges: Iterable[InterfaceName]) -> tuple[Rule, ...]:
    """The same for the wire guard, which knows neither indexes nor networks of the moment.

    Only ever loaded in one transaction with the bridge guard, which keeps all of it from every port but a guest's.
    """
    rules: list[Rule] = []
    for name in bridges:
        out = f'oifname "{name}" meta oifkind "bridge"'
        rules += [
            Rule(
                text=f"{out} ip daddr {quote_set(GUEST_IPV4)} meta l4proto {quote_set((_ICMP, _TCP, _UDP))} accept",
                comment="to guests on a bridge that root allowed: the bridge guard holds its ports",
            ),
            Rule(
                text=f"{out} udp sport 67 udp dport 68 ip daddr 255.255.255.255 accept",
                comment="DHCP answers to guests that have no address yet",
            ),
            Rule(
                text=f"{out} ip6 daddr {quote_set(GUEST_IPV6)} meta l4proto {quote_set((_TCP, _UDP, _ICMPV6))} accept",
                comment="to guests on a bridge that root allowed: the bridge guard holds its ports",
            ),
            Rule(
                text=f"{out} meta l4proto {_ICMPV6} {_NEIGHBOURS} accept",
                comment="neighbour discovery and router advertisements for guests",
            ),
        ]
    return tuple(rules)
