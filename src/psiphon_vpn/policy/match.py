# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The types that a row of `permits` consists of: owner, interface, protocols, addresses, exact forms. Never nft's text.

Pure. The renderers (`render_rules`, `plumbing`, `encapsulation`) turn them into the text of each table.
"""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Final

from psiphon_vpn.policy.model import State
from psiphon_vpn.policy.own_tables import OwnTable
from psiphon_vpn.policy.values import Address, is_plain_address

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
"""Protocol numbers (IANA)."""
ARP, EAPOL, PPPOE_DISCOVERY, PPPOE_SESSION = 0x0806, 0x888E, 0x8863, 0x8864
"""EtherTypes of the frames beside IP (IEEE)."""
EVERY_VERSION: Final = (4, 6)


def mark(message: str) -> str:
    """Mark a constant for the translation catalogue. It is translated where it is shown, which is never here."""
    return message


class Owner(enum.StrEnum):
    """The owner of the socket that sent a packet. The value is shown to users."""

    ANYONE = mark("anybody")
    PSIPHON_USER = mark("psiphon-user")
    """By uid and gid: a container may use either number."""
    NETWORK_MANAGER = mark("root or a network manager")
    ROOT = mark("root")
    KERNEL = mark("the kernel")
    """No socket owns the packet."""


class InterfaceKind(enum.StrEnum):
    """The kind of interface that a packet leaves or arrives by."""

    WIRE = mark("a wire")
    TUNNEL = mark("the TUN")
    LOOPBACK = mark("loopback")
    GUESTS = mark("a bridge that root allowed")
    CONTAINERS = mark("a container's interface")


class RuntimeValue(enum.StrEnum):
    """Values that are known only at run time: from the links or the configuration."""

    GATEWAYS = mark("this link's gateways")
    PREFIXES = mark("this link's IPv6 prefixes")
    NETWORKS = mark("this link's IPv4 networks")
    OWN_GROUPS = mark("the groups of our own addresses")
    RESOLVERS = mark("the addresses in bootstrap_dns")
    PROBED = mark("the addresses in ipv6_probe")
    GUEST_NETWORKS = mark("the networks of the bridge")
    GUEST_OWN = mark("this machine's addresses on the bridge")
    SOCKS_PORT = mark("of the SOCKS proxy")


class Flow(enum.StrEnum):
    """How connection tracking classifies a packet."""

    ANY = ""
    REPLIES = mark("answers in a flow that is known, or errors about one")
    OWN_REPLIES = mark("answers in a flow that psiphon-user began while it might, or errors about one")


class Difference(enum.StrEnum):
    """How one layer's rules differ from the row: what they narrow, or what they allow beyond it.

    The static tables cannot narrow everything, because they outlive the states and links that it depends on.
    """

    STATE = mark("in these states alone")
    UPLINK = mark("only through the uplink")
    NAME_PORTS = mark("not to ports that ask for names")
    NEXT_HOP = mark("only through a gateway of the uplink and in a version that has a default route")
    PROXY = mark("only to the upstream proxy where one is given")
    CONTROL_GROUP = mark("only from the service's control group where the kernel can tell")
    LINK = mark("only from and to this link's own prefixes")
    TARGET = mark("only about an address of this link")
    GROUPS = mark("only of the groups of our own addresses")
    NO_GATEWAY = mark("not to this link's gateways but where they are private")
    ADDRESSES = mark("only with an address of our own and about this link's networks")
    TUNNEL = mark("only with the TUN's own address and not to private or reserved ones")
    LEASE = mark("only while the lease runs")
    BRIDGE = mark("only while the daemon sees nothing but guests on it")
    PORT = mark("only through a port that leads to a guest")
    # Where a layer cannot narrow as the row says.
    UNICAST = mark("to any unicast address")
    PRIVATE = mark("to any private address")
    ANYTHING = mark("whatever it is")


@dataclass(frozen=True, kw_only=True)
class MessageForm:
    """One exact form of a message without ports.

    Attributes:
        types: type of ICMPv6 or EAPOL; operation of ARP; code of PPPoE; protocol of PPP.
        code: code of ICMPv6; None for any.
        sizes: allowed lengths in bytes, from the type on; empty for any.
        longest: greatest length of the whole frame, bytes.
        options: first two bytes of its only option (type, and length in units of eight bytes).
        says: what the rule's comment calls it.
    """

    types: tuple[int, ...]
    code: int | None = None
    sizes: tuple[int, ...] = ()
    longest: int | None = None
    options: tuple[int, ...] = ()
    says: str = ""

    def __post_init__(self) -> None:
        """Refuse values that must not appear in a rule.

        Raises:
            ValueError: one must not.
        """
        numbers = [*self.types, *self.sizes, *self.options, self.code or 0, self.longest or 0]
        if not self.types or not all(type(number) is int and 0 <= number <= 0xFFFF for number in numbers):
            raise ValueError("not a message that may stand in a rule")


@dataclass(frozen=True, kw_only=True)
class Match:
    """What a row matches. An empty field matches anything. No field is text.

    Attributes:
        owner: owner of the sending socket.
        by: interface that the packet leaves by; for inbound and forwarded packets, the one that it arrived by.
        into: for forwarded packets, the interface that it leaves by.
        versions: IP versions; empty for frames that are not IP.
        ethertype: EtherType of frames that are not IP.
        protocols: protocol numbers above IP.
        sources: addresses and networks.
        destinations: likewise.
        source_ports: ports of TCP and UDP.
        destination_ports: likewise.
        messages: the forms of messages without ports.
        hop_limit: this exact hop limit.
        flow: class of connection tracking.
        lease: IP version whose lease must be running; None if no lease is needed.
    """

    owner: Owner = Owner.ANYONE
    by: InterfaceKind | None = None
    into: InterfaceKind | None = None
    versions: tuple[int, ...] = EVERY_VERSION
    ethertype: int | None = None
    protocols: tuple[int, ...] = ()
    sources: tuple[Address | IPNetwork | RuntimeValue, ...] = ()
    destinations: tuple[Address | IPNetwork | RuntimeValue, ...] = ()
    source_ports: tuple[int | RuntimeValue, ...] = ()
    destination_ports: tuple[int | RuntimeValue, ...] = ()
    messages: tuple[MessageForm, ...] = ()
    hop_limit: int | None = None
    flow: Flow = Flow.ANY
    lease: int | None = None

    def __post_init__(self) -> None:
        """Refuse values that must not appear in a rule.

        Raises:
            ValueError: one must not.
        """
        for place in (*self.sources, *self.destinations):
            if not isinstance(place, RuntimeValue | ipaddress.IPv4Network | ipaddress.IPv6Network):
                _check(is_plain_address(place))
        _check_numbers(self.versions, low=4, high=6)
        _check_numbers(self.protocols, low=0, high=0xFF)
        ports = (*self.source_ports, *self.destination_ports)
        _check_numbers((port for port in ports if not isinstance(port, RuntimeValue)), low=1, high=0xFFFF)
        _check_numbers((self.ethertype or 0, self.hop_limit or 0), low=0, high=0xFFFF)
        # A renderer would leave out a combination that no rule can match, and the rule would be wider than its row.
        _check(not ports or (bool(self.protocols) and {*self.protocols} <= {TCP, UDP}))
        _check(not (ports and self.messages))
        _check(self.hop_limit is None or bool(self.messages))
        _check(not self.messages or self.ethertype is not None or (self.versions, self.protocols) == ((6,), (ICMPV6,)))
        fixed = (place for place in (*self.sources, *self.destinations) if not isinstance(place, RuntimeValue))
        _check(all(place.version in self.versions for place in fixed))
        _check(self.ethertype is None or not (self.versions or self.protocols or self.sources or self.destinations))

    @property
    def fixed_destinations(self) -> tuple[Address | IPNetwork, ...]:
        """The destinations that are constants."""
        return tuple(place for place in self.destinations if not isinstance(place, RuntimeValue))

    @property
    def address_versions(self) -> tuple[int, ...]:
        """The IP versions that remain possible with its destination addresses."""
        fixed = {place.version for place in self.destinations if not isinstance(place, RuntimeValue)}
        return tuple(version for version in self.versions if version in (fixed or self.versions))

    def list_set_fields(self) -> set[str]:
        """The fields that restrict anything."""
        return {field.name for field in fields(self) if getattr(self, field.name) != field.default}


@dataclass(frozen=True, kw_only=True)
class Permit:
    """One thing that may pass.

    Attributes:
        name: identifies the row: words joined by hyphens.
        what: description for users.
        why: the reason, for users: what would not work without it.
        shows: what it reveals to the network, for users; empty if it reaches no network.
        match: what it matches.
        comment: the comment of its rules in the kernel.
        states: states of the service in which it may pass. Only the base table knows them.
        layers: the tables that have their own rule for it.
        within: the wider row whose rules cover it in the other layers, which cannot tell it apart.
        narrowed: for each layer, how its rules are narrower than `match`.
        widened: for each layer, what its rules allow beyond `match`.
    """

    name: str
    what: str
    why: str
    shows: str = ""
    match: Match
    comment: str = ""
    states: tuple[State, ...]
    layers: tuple[OwnTable, ...]
    within: Permit | None = None
    narrowed: tuple[tuple[OwnTable, tuple[Difference, ...]], ...] = ()
    widened: tuple[tuple[OwnTable, tuple[Difference, ...]], ...] = ()

    def list_differences(self, layer: OwnTable) -> tuple[Difference, ...]:
        """How a layer's rules differ from the row, narrower and wider."""
        return tuple(fact for table, facts in (*self.narrowed, *self.widened) for fact in facts if table is layer)

    @property
    def wider_in(self) -> tuple[OwnTable, ...]:
        """The layers that narrow it less than others do. Only the other layers stop what these let pass."""
        every = {fact for _, facts in self.narrowed for fact in facts}
        widened = {layer for layer, _ in self.widened}
        return tuple(
            layer for layer in self.layers if layer in widened or not every <= set(self.list_differences(layer))
        )


def _check(condition: bool) -> None:
    if not condition:
        raise ValueError("a value that may not stand in a rule")


def _check_numbers(values: Iterable[object], *, low: int, high: int) -> None:
    _check(all(type(value) is int and low <= value <= high for value in values))
