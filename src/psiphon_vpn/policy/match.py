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
"""Numbers of protocols (IANA)."""
ARP, EAPOL, PPPOE_DISCOVERY, PPPOE_SESSION = 0x0806, 0x888E, 0x8863, 0x8864
"""Numbers of what is on a wire beside IP (IEEE)."""
EVERY_VERSION: Final = (4, 6)


def mark(message: str) -> str:
    """Mark a constant for the catalogue of translations; it is translated where it is shown, which is never here."""
    return message


class Owner(enum.StrEnum):
    """Who has the socket that a packet comes from. The value is said to people."""

    ANYONE = mark("anybody")
    PSIPHON_USER = mark("psiphon-user")
    """By uid and gid: a container may use either number."""
    NETWORK_MANAGER = mark("root or a network manager")
    ROOT = mark("root")
    KERNEL = mark("the kernel")
    """No socket has it."""


class InterfaceKind(enum.StrEnum):
    """Which interface a packet leaves by, or comes in by."""

    WIRE = mark("a wire")
    TUNNEL = mark("the TUN")
    LOOPBACK = mark("loopback")
    GUESTS = mark("a bridge that root allowed")
    CONTAINERS = mark("a container's interface")


class RuntimeValue(enum.StrEnum):
    """Values that only the moment or the configuration gives."""

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
    """What connection tracking says of a packet."""

    ANY = ""
    ESTABLISHED = mark("of a flow that is known, or an error about one")
    REPLIES = mark("answers in a flow that is known, or errors about one")
    OWN_REPLIES = mark("answers in a flow that psiphon-user began while it might, or errors about one")


class Difference(enum.StrEnum):
    """What a table may know, and narrows a row by. Not every table can: the text of some outlives what is known."""

    STATE = mark("in these states alone")
    UPLINK = mark("only by the uplink")
    NAME_PORTS = mark("not to ports that ask for names")
    NEXT_HOP = mark("only by a gateway of the uplink and in a version that has a default route")
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
    PORT = mark("only by a port that leads to a guest")
    # What a table cannot narrow as the row says.
    UNICAST = mark("to any unicast address")
    PRIVATE = mark("to any private address")
    ANYTHING = mark("whatever it is")


@dataclass(frozen=True, kw_only=True)
class MessageForm:
    """One form of a message that has no ports.

    Attributes:
        types: of ICMPv6 or EAPOL; the operation of ARP; the code of PPPoE; the protocol of PPP.
        code: of ICMPv6; None for any.
        sizes: bytes, exactly one of these, from the type on; none: any.
        longest: bytes of a whole frame.
        options: first two bytes of the one option that it has (type and length in units of eight bytes).
        says: what it is, in the rule's comment.
    """

    types: tuple[int, ...]
    code: int | None = None
    sizes: tuple[int, ...] = ()
    longest: int | None = None
    options: tuple[int, ...] = ()
    says: str = ""

    def __post_init__(self) -> None:
        """Refuse what could not stand in a rule.

        Raises:
            ValueError: it could not.
        """
        numbers = [*self.types, *self.sizes, *self.options, self.code or 0, self.longest or 0]
        if not self.types or not all(type(number) is int and 0 <= number <= 0xFFFF for number in numbers):
            raise ValueError("not a message that may stand in a rule")


@dataclass(frozen=True, kw_only=True)
class Match:
    """What a row matches. An empty field asks nothing; None of them is text.

    Attributes:
        owner: whose socket.
        by: the interface: that it leaves by, or for what comes in, that it came by.
        into: for what is forwarded: the interface that it leaves by.
        versions: of IP; none for what is below IP.
        ethertype: of what is below IP.
        protocols: numbers of those above IP.
        sources: addresses and networks.
        destinations: likewise.
        source_ports: of TCP and UDP.
        destination_ports: likewise.
        messages: forms of what has no ports.
        hop_limit: exactly this one.
        flow: what connection tracking says.
        lease: the IP version whose lease must run; None for no lease.
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
        """Refuse what could not stand in a rule.

        Raises:
            ValueError: it could not.
        """
        for place in (*self.sources, *self.destinations):
            if not isinstance(place, RuntimeValue | ipaddress.IPv4Network | ipaddress.IPv6Network):
                _check(is_plain_address(place))
        _check_numbers(self.versions, low=4, high=6)
        _check_numbers(self.protocols, low=0, high=0xFF)
        ports = (*self.source_ports, *self.destination_ports)
        _check_numbers((port for port in ports if not isinstance(port, RuntimeValue)), low=1, high=0xFFFF)
        _check_numbers((self.ethertype or 0, self.hop_limit or 0), low=0, high=0xFFFF)
        # What no rule could ask together would be left out, and the rule be wider than its row.
        _check(not ports or (bool(self.protocols) and {*self.protocols} <= {TCP, UDP}))
        _check(not (ports and self.messages))
        _check(self.hop_limit is None or bool(self.messages))
        _check(not self.messages or self.ethertype is not None or (self.versions, self.protocols) == ((6,), (ICMPV6,)))
        fixed = (place for place in (*self.sources, *self.destinations) if not isinstance(place, RuntimeValue))
        _check(all(place.version in self.versions for place in fixed))
        _check(self.ethertype is None or not (self.versions or self.protocols or self.sources or self.destinations))

    @property
    def fixed_destinations(self) -> tuple[Address | IPNetwork, ...]:
        """The destinations that need nobody to know them."""
        return tuple(place for place in self.destinations if not isinstance(place, RuntimeValue))

    @property
    def address_versions(self) -> tuple[int, ...]:
        """The IP versions that its addresses leave."""
        fixed = {place.version for place in self.destinations if not isinstance(place, RuntimeValue)}
        return tuple(version for version in self.versions if version in (fixed or self.versions))

    def list_set_fields(self) -> set[str]:
        """The fields that ask anything."""
        return {field.name for field in fields(self) if getattr(self, field.name) != field.default}


@dataclass(frozen=True, kw_only=True)
class Permit:
    """One thing that may pass.

    Attributes:
        name: of the row: one word or more with hyphens.
        what: it in words.
        why: without it, what would not work.
        shows: what it shows to the network; empty for what reaches none.
        match: it in values.
        comment: what its rules say of themselves.
        states: those of the service in which it may pass. The base table alone knows them.
        layers: the tables that have a rule of its own for it.
        within: the row by which the other layers let it pass, because they cannot tell it apart.
        narrowed: what a layer narrows it by.
        widened: what a layer lets pass besides, since it cannot tell.
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
        """In what a layer differs from the row: what it narrows it by, and what it lets pass besides."""
        return tuple(fact for table, facts in (*self.narrowed, *self.widened) for fact in facts if table is layer)

    @property
    def wider_in(self) -> tuple[OwnTable, ...]:
        """The layers that cannot narrow it as others do: what only they would let pass, only the others stop."""
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
