# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Shortcuts: rules for the most common packets, in front of the rules that decide about all packets.

Nearly every packet of an open machine is one of four: of the core to its server, an answer to that, of an application
into the TUN, an answer out of it. Without shortcuts each is asked what only neighbour discovery, DHCP and misuse have
to answer, in several hooks, before the rule that accepts it.

**Why they change no verdict.** A shortcut only accepts, it jumps nowhere and drops nothing, and it states its whole
condition itself: the row's match, and the opposite of every refusal that the packet would meet before the rule that
accepts it. So it accepts nothing that the rules behind it would not accept, and sets the same marks. Those rules are
all still there: what no shortcut accepts meets them as if there were no shortcut. Hence no safety depends on the order
either: moved to the end, a shortcut is merely useless, and without all of them (`Table.leave_out_shortcuts`) every
verdict is the same, which `tests/unit/test_rule_walk.py` tries with packets of every kind on every table.

A match that cannot be evaluated fails (NFT_BREAK): a packet without a socket, a fragment without ports. Then the
shortcut does not accept, and the other rules decide.
"""

from __future__ import annotations

from dataclasses import replace

from psiphon_vpn.policy import names, permits
from psiphon_vpn.policy.match import Match, Permit
from psiphon_vpn.policy.model import Identity, Policy
from psiphon_vpn.policy.render_rules import TUNNEL_PROTOCOLS, RenderContext, accept, quote_values, render_match
from psiphon_vpn.policy.ruleset import Rule
from psiphon_vpn.policy.values import Address, quote_set

_WORDS = {4: "ip", 6: "ip6"}
_SUBNETS = {4: names.TUN_IPV4_SUBNET, 6: names.TUN_IPV6_SUBNET}


def take(permit: Permit, text: str) -> Rule:
    """A shortcut for a row's packets."""
    return replace(accept(permit, text, f"shortcut: {permit.comment}"), shortcut=True)


def _away_from_tunnel(version: int) -> str:
    """The opposite of `tunnel_address_rules`. It also matches the version, so it comes first in a rule."""
    word, subnet = _WORDS[version], _SUBNETS[version]
    return f"{word} saddr != {subnet} {word} daddr != {subnet}"


def _list_versions(match: Match) -> tuple[tuple[int, Match], ...]:
    """A row's match for each IP version that it allows; none for protocols that rules for ICMPv6 decide about."""
    if not match.protocols or not set(match.protocols) <= set(TUNNEL_PROTOCOLS):
        return ()
    return tuple(
        (
            version,
            replace(
                match,
                destinations=tuple(place for place in match.fixed_destinations if place.version == version),
            ),
        )
        for version in match.address_versions
        if len(match.fixed_destinations) == len(match.destinations)
    )


def core_shortcuts(policy: Policy, match: Match | None, *, group: bool) -> tuple[Rule, ...]:
    """The core's TCP and UDP to its server, in the base table.

    Args:
        policy: the policy.
        match: what the core may send in this state (`wire.find_core_match`); None for nothing.
        group: whether the socket must be in the service's control group too, where the kernel can tell.
    """
    uplink = policy.links.uplink
    if match is None or uplink is None or uplink == names.TUN_NAME:
        return ()
    context = RenderContext(identity=policy.identity)
    member = f" {policy.control_group.match}" if group and policy.control_group is not None else ""
    rules = []
    for version, part in _list_versions(match):
        if policy.upstream_proxy is None and version not in policy.links.versions:
            continue
        gateways = () if policy.upstream_proxy is not None else _find_gateways(policy, version)
        hop = f" rt {_WORDS[version]} nexthop {quote_values(gateways)}" if gateways else ""
        what = render_match(part, context, interface=f'oifname "{uplink}"', version=version)
        rules.append(
            take(
                permits.CORE,
                f"{_away_from_tunnel(version)} {what}{member} th dport != {quote_set(permits.NAME_PORTS)}{hop} "
                f"ct mark set {names.CORE_MARK}",
            )
        )
    return tuple(rules)


def _find_gateways(policy: Policy, version: int) -> tuple[Address, ...]:
    return tuple(gateway for gateway in policy.links.gateways if gateway.version == version)


def guard_shortcuts(identity: Identity) -> tuple[Rule, ...]:
    """The same in the wire guard, which knows neither states nor links."""
    context = RenderContext(identity=identity)
    return tuple(
        take(permits.CORE, f"{_away_from_tunnel(version)} {render_match(part, context, version=version)}")
        for version, part in _list_versions(permits.CORE.match)
    )


def frame_shortcuts(context: RenderContext, frames: dict[int, str]) -> tuple[Rule, ...]:
    """The same at a card, of frames without a tag. The rules before the core's refuse the tunnel's sources there.

    Args:
        context: who the core is.
        frames: text that matches a frame of an IP version.
    """
    return tuple(
        take(
            permits.CORE,
            f"{frames[version]} {_WORDS[version]} saddr != {_SUBNETS[version]} "
            f"{render_match(part, context, version=version)}",
        )
        for version, part in _list_versions(permits.CORE.match)
    )


def application_shortcuts(identity: Identity, refused: dict[int, tuple[str, ...]]) -> tuple[Rule, ...]:
    """TCP and UDP of applications, in the chain for our own TUN.

    Args:
        identity: who psiphon-user is, whose packets must not enter it.
        refused: the destinations that do not enter the tunnel, by IP version.
    """
    context = RenderContext(identity=identity)
    rules = []
    for version, permit, source, ports in (
        (4, permits.APPLICATIONS, permits.TUN_IPV4, ""),
        (6, permits.APPLICATIONS_IPV6, permits.TUN_IPV6, " th dport != 53"),
    ):
        # Only the TUN's own source, as the rules before the row's own demand.
        match = replace(permit.match, sources=(source,))
        rules.append(
            take(
                permit,
                f"{_WORDS[version]} daddr != {quote_set(refused[version])} meta skuid != {identity.uid}{ports} "
                f"{render_match(match, context)}",
            )
        )
    return tuple(rules)


def answer_shortcuts(identity: Identity) -> tuple[Rule, ...]:
    """What comes in for the core. The row demands a known flow, so an invalid packet is none of it."""
    what = render_match(permits.CORE_ANSWERS.match, RenderContext(identity=identity))
    return tuple(
        take(permits.CORE_ANSWERS, f'iifname != "{names.TUN_NAME}" {_away_from_tunnel(version)} {what}')
        for version in permits.CORE_ANSWERS.match.versions
    )
