# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Rows of `permits` in words: for the documents, and for `psiphon-vpn rules explain`. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from psiphon_vpn.i18n import _
from psiphon_vpn.policy import permits
from psiphon_vpn.policy.match import (
    ARP,
    EAPOL,
    ICMP,
    ICMPV6,
    PPPOE_DISCOVERY,
    PPPOE_SESSION,
    TCP,
    UDP,
    Difference,
    Flow,
    Match,
    MessageForm,
    Permit,
    RuntimeValue,
    mark,
)
from psiphon_vpn.policy.own_tables import OwnTable

SECTIONS: Final = {
    mark("out, on a wire"): permits.ON_A_WIRE,
    mark("out, to guests on a bridge that root allowed"): permits.TO_GUESTS,
    mark("into the tunnel"): permits.INTO_THE_TUNNEL,
    mark("on loopback"): permits.ON_LOOPBACK,
    mark("coming in"): permits.COMING_IN,
    mark("forwarded"): permits.FORWARDED,
}
_PROTOCOLS = {ICMP: "ICMP", TCP: "TCP", UDP: "UDP", ICMPV6: "ICMPv6"}
_BELOW_IP = {ARP: "ARP", EAPOL: "EAPOL", PPPOE_DISCOVERY: "PPPoE", PPPOE_SESSION: "PPP"}


def find_section(permit: Permit) -> str:
    """The section of a row: where its traffic goes."""
    return next(_(name) for name, rows in SECTIONS.items() if permit in rows)


def describe_match(match: Match) -> str:
    """What a row matches, except for the owner: every value that it requires."""
    kinds = [_BELOW_IP[match.ethertype]] if match.ethertype is not None else []
    if len(match.versions) == 1 and ICMPV6 not in match.protocols:
        kinds.append(f"IPv{match.versions[0]}")
    kinds += [_PROTOCOLS.get(number, str(number)) for number in match.protocols]
    messages = [_describe_message(message) for message in match.messages]
    parts = [", ".join(kinds) + (": " if kinds and messages else "") + _join(messages, _("or"))]
    for text, values in (
        (_("from port {values}"), match.source_ports),
        (_("to port {values}"), match.destination_ports),
        (_("from {values}"), match.sources),
        (_("to {values}"), match.destinations),
    ):
        parts += [text.format(values=_list(values))] if values else []
    if match.hop_limit is not None:
        parts.append(_("hop limit {number}").format(number=match.hop_limit))
    if match.flow is not Flow.ANY:
        parts.append(_(match.flow))
    if match.lease is not None:
        parts.append(_("while the lease of IPv{version} runs").format(version=match.lease))
    return "; ".join(part for part in parts if part) or _("everything")


def _describe_message(message: MessageForm) -> str:
    parts = [_("type {numbers}").format(numbers=_list(_show_type(number) for number in message.types))]
    if message.sizes:
        parts.append(_("of {numbers} bytes").format(numbers=_join(map(str, message.sizes), _("or"))))
    if message.longest is not None:
        parts.append(_("in frames of at most {number} bytes").format(number=message.longest))
    if message.options:
        parts.append(_("with option {numbers}").format(numbers=_join((str(w >> 8) for w in message.options), _("or"))))
    return " ".join(parts)


def _show_type(number: int) -> str:
    return str(number) if number < 0x100 else f"{number:#06x}"


def _list(values: Iterable[object]) -> str:
    return ", ".join(_(value) if isinstance(value, RuntimeValue) else str(value) for value in values)


def _join(texts: Iterable[str], word: str) -> str:
    *first, last = tuple(texts) or ("",)
    return f"{', '.join(first)} {word} {last}" if first else last


def describe_states(permit: Permit) -> str:
    """The states of the service in which a row may pass."""
    if permit.states == permits.EVERY_STATE:
        return _("always")
    return ", ".join(str(state) for state in permit.states)


def describe_layers(permit: Permit) -> str:
    """The layers that have a rule for a row, each with its differences from the row, if any."""
    return "; ".join(describe_layer(permit, layer) for layer in permit.layers) + _describe_within(permit)


def describe_layer(permit: Permit, layer: OwnTable) -> str:
    """One layer, with its differences from the row."""
    facts = permit.list_differences(layer)
    return f"{layer.layer} ({'; '.join(_show_fact(fact) for fact in facts)})" if facts else layer.layer


def _describe_within(permit: Permit) -> str:
    others = [layer.layer for layer in (permit.within.layers if permit.within else ()) if layer not in permit.layers]
    if not others or permit.within is None:
        return ""
    return "; " + _("as part of `{row}`: {layers}").format(row=permit.within.name, layers=", ".join(others))


def _show_fact(fact: Difference) -> str:
    return f"{_(fact)}: {_list(permits.NAME_PORTS)}" if fact is Difference.NAME_PORTS else _(fact)
