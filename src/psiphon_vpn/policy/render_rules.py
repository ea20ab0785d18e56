"""A row as a rule, in nft's own words: for the tables of the family inet, and for plain frames at a card.

No rule accepts anything but by `accept`, which asks for the row. The order of what a rule matches is fixed here; it
changes nothing of what is matched.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from psiphon_vpn.policy import names
from psiphon_vpn.policy.match import (
    ICMP,
    ICMPV6,
    TCP,
    UDP,
    Flow,
    IPNetwork,
    Match,
    MessageForm,
    Owner,
    Permit,
    RuntimeValue,
)
from psiphon_vpn.policy.model import Identity
from psiphon_vpn.policy.ruleset import Rule
from psiphon_vpn.policy.values import Address, quote_set

NO_UID = 0xFFFFFFFF
"""No user has this number (setuid(2)): a comparison with it says whether there is an owner at all."""
ROOT_UIDS = (0,)
"""Who logs in to a line, or by a packet socket to a network: wpa_supplicant and iwd as root, on cables, and on wireless
cards whose driver has no control port. What mac80211 sends for them (NL80211_CMD_CONTROL_PORT_FRAME) never meets the
hook: tests/guest/test_wireless.py measures both. A distribution that gives wpa_supplicant a user of its own has the
second way alone."""
TUNNEL_PROTOCOLS = (TCP, UDP)
"""What the tunnel carries: where a chain has refused every other protocol, it need not be asked for again."""
IPV6_HEADER = 40

_TRANSPORT = {TCP: "tcp", UDP: "udp"}
_FLOWS = {
    Flow.ANY: "",
    Flow.ESTABLISHED: "ct state established,related",
    Flow.REPLIES: "ct state established,related ct direction reply",
    Flow.OWN_REPLIES: f"ct state established,related ct direction reply ct mark {names.CORE_MARK}",
}
_LEASES = {4: names.LEASE_SET, 6: names.LEASE_SET_IPV6}

Value = int | Address | IPNetwork


@dataclass(frozen=True, kw_only=True)
class RenderContext:
    """What the writer of a table knows: who is who by number, and the values of the moment that it was given.

    Attributes:
        identity: the numbers.
        known: values; what is not here is not known.
        header: bytes of a frame before its IP header, where lengths count them.
    """

    identity: Identity
    values: Mapping[RuntimeValue, tuple[Value, ...]] = field(default_factory=dict)
    header: int = 0

    def resolve(self, values: Iterable[Value | RuntimeValue]) -> tuple[Value, ...]:
        """Values, with those of the moment in place of their names."""
        found: list[Value] = []
        for value in values:
            found += self.values.get(value, ()) if isinstance(value, RuntimeValue) else (value,)
        return tuple(found)

    def require(self, values: Iterable[Value | RuntimeValue]) -> tuple[Value, ...]:
        """The same, where nothing at all would be written as: anything.

        Raises:
            ValueError: nothing of it is known. Whoever writes a wider rule says so.
        """
        found = self.resolve(values)
        if not found:
            raise ValueError("a rule that would ask nothing, since nothing is known of what it asks")
        return found


def accept(permit: Permit, text: str, comment: str | None = None) -> Rule:
    """A rule that lets a row's packets pass.

    Args:
        permit: the row.
        text: what the rule matches, and what it sets besides.
        comment: where it is another than the row's.
    """
    return Rule(text=f"{text} accept", comment=permit.comment if comment is None else comment, permit=permit.name)


def require_rendered(match: Match, *rendered: str) -> None:
    """Refuse a row that asks for more than a form of rule compares: the rule would be wider than its row.

    Args:
        match: the row's.
        rendered: the fields that the form compares. What tells the interface, and the version, is the chain's business;
            and so is that nobody but the kernel has the packet, where it must be so.

    Raises:
        ValueError: it asks for more.
    """
    elsewhere = {"by", "into", "versions", *(["owner"] if match.owner is Owner.KERNEL else [])}
    if left := match.list_set_fields() - {*rendered, *elsewhere}:
        raise ValueError(f"a rule that would not ask for {', '.join(sorted(left))}")


def render_owner(owner: Owner, identity: Identity) -> str:
    """Who has the socket. A rule about the kernel's packets asks nothing: what programs make is refused before it."""
    match owner:
        case Owner.PSIPHON_USER:
            return identity.owner
        case Owner.NETWORK_MANAGER:
            return f"meta skuid {quote_set(identity.network_manager_uids)}"
        case Owner.ROOT:
            return f"meta skuid {quote_set(ROOT_UIDS)}"
        case Owner.ANYONE | Owner.KERNEL:
            return ""


def render_match(
    match: Match,
    context: RenderContext,
    *,
    interface: str = "",
    version: int | None = None,
    checked: tuple[int, ...] = (),
) -> str:
    """What a row matches, in words.

    Args:
        match: the row's.
        context: the values for it.
        interface: text that matches the interface, or the kind of frame.
        version: the IP version that this rule is for, where a row has both and the rule is for one.
        checked: protocols that the chain has let through alone, so that they are not asked for again.
    """
    require_rendered(
        match,
        *("owner", "protocols", "sources", "destinations", "source_ports", "destination_ports"),
        *("messages", "hop_limit", "flow", "lease"),
    )
    owner = render_owner(match.owner, context.identity)
    source = _addresses("saddr", match.sources, context)
    target = _addresses("daddr", match.destinations, context)
    if match.messages:
        parts = [interface, *_icmp(match, context, source), target, owner]
    else:
        if not source and not target and len(match.versions) == 1:
            source = f"meta nfproto ipv{match.versions[0]}"
        ports = _ports(match, context, version, checked)
        middle = (source, ports, target) if match.source_ports else (source, target, ports)
        parts = [owner, interface, *middle]
    parts.append(_FLOWS[match.flow])
    if match.lease is not None:
        parts.append(f"oifname @{_LEASES[match.lease]}")
    return " ".join(part for part in parts if part)


def render_length(message: MessageForm, header: int) -> str:
    """The length of a packet with a message of ICMPv6."""
    sizes = tuple(header + IPV6_HEADER + size for size in message.sizes)
    return f"meta length {quote_values(sizes)}"


def quote_values(values: tuple[Value, ...]) -> str:
    """One value, or a set of several."""
    return str(values[0]) if len(values) == 1 else quote_set(_as_text(values))


def quote_networks(*networks: IPNetwork) -> str:
    """A set of networks of one family; nft refuses one whose elements overlap."""
    return quote_set(map(str, ipaddress.collapse_addresses(networks)))  # type: ignore[type-var]


def render_protocols(match: Match, version: int | None = None) -> str:
    """The protocols above IP."""
    return f"meta l4proto {quote_set(_list_protocols(match, version))}"


def _list_protocols(match: Match, version: int | None) -> tuple[int, ...]:
    others = {4: (ICMPV6,), 6: (ICMP,)}.get(version or 0, ())
    return tuple(number for number in match.protocols if number not in others)


def _icmp(match: Match, context: RenderContext, source: str) -> list[str]:
    (message,) = match.messages
    return [
        f"meta l4proto {ICMPV6} icmpv6 type {quote_values(message.types)}",
        "" if message.code is None else f"icmpv6 code {message.code}",
        source,
        "" if match.hop_limit is None else f"ip6 hoplimit {match.hop_limit}",
        render_length(message, context.header) if message.sizes else "",
    ]


def _ports(match: Match, context: RenderContext, version: int | None, checked: tuple[int, ...]) -> str:
    protocols = _list_protocols(match, version)
    sides = (("sport", match.source_ports), ("dport", match.destination_ports))
    ports = [(side, quote_values(context.require(values))) for side, values in sides if values]
    if not protocols:
        return ""
    if ports and len(protocols) == 1:
        return " ".join(f"{_TRANSPORT[protocols[0]]} {side} {values}" for side, values in ports)
    above = "" if protocols == checked else f"meta l4proto {quote_set(protocols)}"
    return " ".join([*([above] if above else []), *(f"th {side} {values}" for side, values in ports)])


def _addresses(side: str, places: tuple[Address | IPNetwork | RuntimeValue, ...], context: RenderContext) -> str:
    if not places:
        return ""
    values = context.require(places)
    (version,) = {_version(value) for value in values}
    family = "ip" if version == 4 else "ip6"
    fixed = not any(isinstance(place, RuntimeValue) for place in places)
    return f"{family} {side} {quote_values(values) if fixed else quote_set(_as_text(values))}"


def _version(value: Value) -> int:
    assert not isinstance(value, int)
    return value.version


def _as_text(values: Iterable[Value]) -> list[int | str | Address]:
    return [
        str(value) if isinstance(value, ipaddress.IPv4Network | ipaddress.IPv6Network) else value for value in values
    ]
