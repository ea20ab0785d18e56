# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Renders a row as a rule in nft's own expressions: for inet tables, and for plain frames at a card.

Every accepting rule is made by `accept`, which takes the row. The order of a rule's matches is fixed here; it does not
change what is matched.
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
"""No user has this uid (setuid(2)): comparing with it shows whether a packet has an owner at all."""
ROOT_UIDS = (0,)
"""The uids that log in to a line, or to a network by a packet socket: wpa_supplicant and iwd as root, on cables, and on
wireless cards whose driver has no control port. Frames that mac80211 sends for them (NL80211_CMD_CONTROL_PORT_FRAME)
do not pass the hook: tests/guest/test_wireless.py measures both. Where a distribution runs wpa_supplicant as another
user, only the latter works."""
TUNNEL_PROTOCOLS = (TCP, UDP)
"""What the tunnel carries. Where a chain has refused every other protocol, later rules need not match it again."""
IPV6_HEADER = 40

_TRANSPORT = {TCP: "tcp", UDP: "udp"}
_FLOWS = {
    Flow.ANY: "",
    Flow.REPLIES: "ct state established,related ct direction reply",
    Flow.OWN_REPLIES: f"ct state established,related ct direction reply ct mark {names.CORE_MARK}",
}
_LEASES = {4: names.LEASE_SET, 6: names.LEASE_SET_IPV6}

Value = int | Address | IPNetwork


@dataclass(frozen=True, kw_only=True)
class RenderContext:
    """What a renderer knows besides the rows: the identity, and the run-time values of this table.

    Attributes:
        identity: the uids and gids.
        values: the run-time values; one that is missing is unknown.
        header: bytes of a frame before its IP header, where lengths include them.
    """

    identity: Identity
    values: Mapping[RuntimeValue, tuple[Value, ...]] = field(default_factory=dict)
    header: int = 0

    def resolve(self, values: Iterable[Value | RuntimeValue]) -> tuple[Value, ...]:
        """The values, with run-time values in place of their names."""
        found: list[Value] = []
        for value in values:
            found += self.values.get(value, ()) if isinstance(value, RuntimeValue) else (value,)
        return tuple(found)

    def require(self, values: Iterable[Value | RuntimeValue]) -> tuple[Value, ...]:
        """The same, where an empty result would be rendered as: anything.

        Raises:
            ValueError: all of them are unknown. A wider rule must be written explicitly.
        """
        found = self.resolve(values)
        if not found:
            raise ValueError("the rule would match anything: none of its run-time values is known")
        return found


def accept(permit: Permit, text: str, comment: str | None = None) -> Rule:
    """A rule that lets a row's packets pass.

    Args:
        permit: the row.
        text: what the rule matches, and what else it sets.
        comment: replaces the row's comment.
    """
    return Rule(text=f"{text} accept", comment=permit.comment if comment is None else comment, permit=permit.name)


def require_rendered(match: Match, *rendered: str) -> None:
    """Refuse a row with a restriction that the rendered rule would not contain: it would be wider than its row.

    Args:
        match: the row's match.
        rendered: the fields that the rule will contain. The chain itself takes care of interface and version, and of
            the owner where it must be the kernel.

    Raises:
        ValueError: the row restricts another field.
    """
    elsewhere = {"by", "into", "versions", *(["owner"] if match.owner is Owner.KERNEL else [])}
    if left := match.list_set_fields() - {*rendered, *elsewhere}:
        raise ValueError(f"the rule would not restrict {', '.join(sorted(left))} as its row does")


def render_owner(owner: Owner, identity: Identity) -> str:
    """Match the socket's owner. Rules about the kernel's packets need no match: earlier ones refuse all others."""
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
    """Render what a row matches.

    Args:
        match: the row's match.
        context: the values for it.
        interface: text that matches the interface, or the kind of frame.
        version: the IP version of this rule, if the row has both.
        checked: the only protocols that the chain has let through; they are not matched again.
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
    """Match the length of a packet with an ICMPv6 message."""
    sizes = tuple(header + IPV6_HEADER + size for size in message.sizes)
    return f"meta length {quote_values(sizes)}"


def quote_values(values: tuple[Value, ...]) -> str:
    """One value, or a set of several."""
    return str(values[0]) if len(values) == 1 else quote_set(_as_text(values))


def quote_networks(*networks: IPNetwork) -> str:
    """A set of networks of one family; nft refuses sets with overlapping elements."""
    return quote_set(map(str, ipaddress.collapse_addresses(networks)))  # type: ignore[type-var]


def render_protocols(match: Match, version: int | None = None) -> str:
    """Match the protocols above IP."""
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
