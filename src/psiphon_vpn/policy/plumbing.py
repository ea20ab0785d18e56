# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The messages that keep a link working, in their exact form and length: neighbour discovery, MLD, ARP, EAPOL.

In an inet table only the kernel's own packets have no owner. At a card's egress hook the frames of a macvlan child and
of a bridged virtual machine have none either, and anybody in there can craft them. So the rules compare the length and
every field that a sender could choose freely; SECURITY.md says what remains.

Raw bytes are given by base, offset and length in bits (nft(8), "Raw payload expression"): @ll starts at the frame, @nh
at the IP header, @th after all IPv6 headers. nft 0.9.3 has no expressions for most of these fields.
"""

from __future__ import annotations

import ipaddress

from psiphon_vpn.policy import permits
from psiphon_vpn.policy.match import ICMPV6, MessageForm, Permit, RuntimeValue
from psiphon_vpn.policy.model import Identity
from psiphon_vpn.policy.onlink import OnLink
from psiphon_vpn.policy.render_rules import (
    IPV6_HEADER,
    NO_UID,
    RenderContext,
    accept,
    quote_networks,
    quote_values,
    render_length,
    render_match,
    render_owner,
    require_rendered,
)
from psiphon_vpn.policy.ruleset import Rule
from psiphon_vpn.policy.values import quote_set

ETHERNET_HEADER = 14
LINK_LOCAL = ipaddress.IPv6Network("fe80::/64")
"""RFC 4291 2.5.6. A gateway in another prefix of fe80::/10 is among the networks of the link."""
NO_IPV4, NO_IPV6 = ipaddress.IPv4Network(0), ipaddress.IPv6Network(0)
ANY_UNICAST = ("fe80::/10", "fc00::/7", "2000::/3")
ROUTER_ALERT = 0x3A00050200000100
"""Hop-by-hop header of an MLD report: next header ICMPv6, router alert, two bytes of padding (RFC 2710 3, RFC 2711)."""
HOP_BY_HOP_HEADER = 8
_DESTINATIONS = {
    (permits.EVERY_ROUTER,),
    (permits.EVERY_NODE, permits.SOLICITED_NODE, RuntimeValue.PREFIXES),
}
"""Destinations of neighbour discovery that `discovery_rules` can render."""
NO_FLOW_LABEL = "@nh,0,32 & 0x000fffff == 0x0"
NOTHING_RESERVED = "@th,32,32 & 0x1fffffff == 0x0"
"""The reserved bits of a solicitation, or of an advertisement after its three flags."""


def discovery_rules(
    identity: Identity, on_link: OnLink | None = None, *, ipv6: str = "", header: int = 0, targets: bool = False
) -> tuple[Rule, ...]:
    """Neighbour discovery and MLD of the kernel, which has no uid. Network managers may send router solicitations too.

    Any other such message comes from a program, and a router would forward it to any destination. MLD is version 1
    (policy/sysctls.py), whose report goes to the same group that it names (RFC 2710 4), so the rules compare the group.
    Version 2 would carry any addresses that a user joins.

    Args:
        identity: who may look for routers.
        on_link: the neighbours that the kernel may talk to; None for static tables, which know no links.
        ipv6: text that matches IPv6, for tables outside the family inet.
        header: bytes of a frame before its IP header.
        targets: whether other senders' frames pass here: then the addresses inside the message are compared too.
    """
    kind = f"{ipv6} meta l4proto {ICMPV6} icmpv6 type".lstrip()
    context = RenderContext(identity=identity, header=header)
    search = render_match(permits.ROUTER_SEARCH.match, context)
    groups = _list_fixed(permits.NEIGHBOURS)
    source, searching = "", f"ip6 daddr {quote_values(permits.ROUTER_SOLICITATION.match.fixed_destinations)}"
    ends = f"ip6 daddr {quote_set((*groups, *ANY_UNICAST))}"
    if on_link is not None:
        # A guest's prefix never belongs on a card.
        guests = () if targets else on_link.guests_ipv6
        networks = tuple(dict.fromkeys((LINK_LOCAL, *on_link.networks_ipv6, *guests)))
        source = f"ip6 saddr {quote_networks(NO_IPV6, *networks)}"
        searching = f"{source} {searching}"
        ends = f"{source} ip6 daddr {quote_set((*groups, *map(str, networks)))}"
        if targets:
            prefixes = (f"{int(network.network_address) >> 64:#018x}" for network in networks)
            ends += f" @th,64,64 {{ {', '.join(prefixes)} }}"

    def by_kernel(permit: Permit, message: MessageForm, inside: str, ends: str) -> Rule:
        require_discovery_form(permit)
        (size,) = message.sizes
        # Compare the next header too: an extension header could carry anything.
        return accept(
            permit,
            f"{kind} {quote_values(message.types)} icmpv6 code {message.code} {render_length(message, header)} "
            f"ip6 length {size} ip6 nexthdr {ICMPV6} ip6 hoplimit {permit.match.hop_limit} {NO_FLOW_LABEL} "
            f"{inside} {ends}",
            f"{permit.comment}: {message.says}",
        )

    return (
        accept(permits.ROUTER_SEARCH, f"{ipv6} {search}".lstrip()),
        Rule(
            text=f"{kind} {quote_set(permits.KERNELS_OWN)} meta skuid != {NO_UID} drop",
            comment="made by a program: only the kernel itself speaks so",
        ),
        *(
            by_kernel(permits.ROUTER_SOLICITATION, message, f"@th,32,32 0x0{_option(64, message)}", searching)
            for message in permits.ROUTER_SOLICITATION.match.messages
        ),
        *(
            by_kernel(permits.NEIGHBOURS, message, f"{NOTHING_RESERVED}{_option(192, message)}", ends)
            for message in permits.NEIGHBOURS.match.messages
        ),
        *_report_rules(kind, header, on_link if targets else None),
    )


def require_discovery_form(permit: Permit) -> None:
    """Refuse a row of neighbour discovery with a restriction that its rules would not contain.

    Raises:
        ValueError: it has one.
    """
    require_rendered(permit.match, "protocols", "destinations", "messages", "hop_limit")
    if permit.match.destinations not in _DESTINATIONS:
        raise ValueError("no rule can be rendered for these destinations")


def _option(bit: int, message: MessageForm) -> str:
    """Compare the only option of a message, if it has one. bit: offset of the option."""
    return f" @th,{bit},16 {_quote_words(message.options)}" if message.options else ""


def _list_fixed(permit: Permit) -> list[str]:
    return [str(place) for place in permit.match.fixed_destinations]


def _quote_words(words: tuple[int, ...]) -> str:
    """Two-byte values."""
    texts = [f"{word:#06x}" for word in words]
    return texts[0] if len(texts) == 1 else f"{{ {', '.join(texts)} }}"


def _report_rules(kind: str, header: int, on_link: OnLink | None) -> tuple[Rule, ...]:
    """MLDv1 reports: MLD snooping needs only those of the solicited-node groups (RFC 4541 3).

    Args:
        kind: the beginning of a rule, up to the type.
        header: bytes of a frame before its IP header.
        on_link: our own groups, if known; otherwise a user can cause a report of any of the 2^24.
    """
    if on_link is not None and not on_link.groups:
        return ()
    row = permits.MLD.match
    require_rendered(row, "protocols", "sources", "destinations", "messages", "hop_limit")
    if row.destinations != (permits.SOLICITED_NODE,):
        raise ValueError("no rule can be rendered for these destinations")
    (message,) = row.messages
    (size,) = message.sizes
    payload = HOP_BY_HOP_HEADER + size
    group = f"ip6 daddr {quote_values(row.fixed_destinations)}"
    if on_link is not None:
        tails = tuple(dict.fromkeys(f"{int(group) & 0xFFFFFF:#08x}" for group in on_link.groups))
        group = f"ip6 daddr {quote_set(on_link.groups)} @th,168,24 {{ {', '.join(tails)} }}"
    sources = quote_networks(*(ipaddress.IPv6Network(str(place)) for place in row.sources))
    return (
        accept(
            permits.MLD,
            f"{kind} {quote_values(message.types)} icmpv6 code {message.code} ip6 hoplimit {row.hop_limit} "
            f"{NO_FLOW_LABEL} meta length {header + IPV6_HEADER + payload} ip6 length {payload} ip6 nexthdr 0 "
            f"@nh,320,64 {ROUTER_ALERT:#018x} ip6 saddr {sources} {group} @th,32,32 0x0 "
            "@th,64,64 0xff02000000000000 @th,128,40 0x00000001ff",
        ),
    )


def arp_rules(identity: Identity, arp: str, on_link: OnLink | None, *, shift: int = 0) -> tuple[Rule, ...]:
    """ARP for IPv4 on Ethernet (RFC 826), 42 bytes: nothing pads a frame before the card does.

    Args:
        identity: who may check whether an address is taken (RFC 5227), before the machine has it.
        arp: text that matches ARP.
        on_link: our own addresses and the networks of the link; None where they are not known.
        shift: bits by which a VLAN tag moves what follows it.
    """
    searched = permits.ARP_SEARCH.match
    require_rendered(searched, "owner", "ethertype", "messages")
    require_rendered(permits.ARP_OWN.match, "ethertype", "messages")
    (search,) = searched.messages
    (size,) = search.sizes
    form = f"{arp} meta length {ETHERNET_HEADER + size} @ll,{112 + shift},48 0x000108000604 @ll,{160 + shift},16"
    rules = [
        accept(
            permits.ARP_SEARCH,
            f"{form} {_quote_words(search.types)} {render_owner(searched.owner, identity)}",
        ),
        Rule(text=f"{arp} meta skuid != {NO_UID} drop", comment="made by a program: only the kernel itself speaks so"),
    ]
    asked = told = mine = ""
    if on_link is not None:
        if not on_link.own_ipv4:
            return tuple(rules)
        mine = f" arp saddr ip {quote_set(on_link.own_ipv4)}"
        asked = f" arp daddr ip {quote_networks(*on_link.networks_ipv4)}"
        # A probe for a free address has no sender address yet.
        told = f" arp daddr ip {quote_networks(NO_IPV4, *on_link.networks_ipv4)}"
    # A request does not know the hardware address of its target.
    ends = {permits.REQUEST: f" @ll,{256 + shift},48 0x0{mine}{asked}", permits.ANSWER: f"{mine}{told}"}
    for message in permits.ARP_OWN.match.messages:
        (operation,) = message.types
        rules.append(
            accept(
                permits.ARP_OWN,
                f"{form} {operation:#06x}{ends[operation]}",
                f"{permits.ARP_OWN.comment}: {message.says}",
            )
        )
    return tuple(rules)


def eapol_rules(identity: Identity, eapol: str) -> tuple[Rule, ...]:
    """EAPOL (IEEE 802.1X-2010 11.3): of root, versions 1 to 3, packet, start, log-off, key, and MACsec's key agreement.

    Args:
        identity: the uids and gids.
        eapol: text that matches EAPOL.
    """
    row = permits.EAPOL_OWN.match
    require_rendered(row, "owner", "ethertype", "messages")
    (message,) = row.messages
    return (
        accept(
            permits.EAPOL_OWN,
            f"{eapol} {render_owner(row.owner, identity)} @ll,112,8 {quote_set(permits.EAPOL_VERSIONS)} "
            f"@ll,120,8 {quote_set(message.types)}",
        ),
    )
