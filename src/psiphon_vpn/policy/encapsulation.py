# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules for encapsulated packets, in raw bytes: behind two VLAN tags (QinQ), or in a PPPoE session.

The kernel keeps the owner of a packet through a VLAN, a bridge, a bond or a PPPoE session down to the card (tested with
real devices, `tests/guest/`). Behind one tag the egress hook still knows the protocol, so the card's own rules apply
(policy/guards.py). Behind two tags, or in a session, no nft expression reaches the inner headers: every field is
compared at its offset in the frame. An IPv4 header with options has other offsets, and is refused.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from psiphon_vpn.policy import names, permits
from psiphon_vpn.policy.match import (
    ARP,
    ICMPV6,
    PPPOE_DISCOVERY,
    PPPOE_SESSION,
    Match,
    MessageForm,
    Owner,
    Permit,
    RuntimeValue,
)
from psiphon_vpn.policy.model import Identity
from psiphon_vpn.policy.onlink import OnLink
from psiphon_vpn.policy.plumbing import LINK_LOCAL, require_discovery_form
from psiphon_vpn.policy.render_rules import (
    IPV6_HEADER,
    NO_UID,
    ROOT_UIDS,
    RenderContext,
    Value,
    accept,
    quote_values,
    render_owner,
    require_rendered,
)
from psiphon_vpn.policy.ruleset import Chain, Rule
from psiphon_vpn.policy.values import Address, quote_set

IPV4, IPV6 = 0x0800, 0x86DD
VLAN, SERVICE_VLAN = 0x8100, 0x88A8
"""IEEE 802.1Q and 802.1ad."""
TAGS = f"{{ {VLAN:#06x}, {SERVICE_VLAN:#06x} }}"
TAG_BITS = 32
_NO_OPTIONS = "& 0x0f == 0x05"
"""A header of five words. The mask, here and in some rules below, makes nft read the field by itself: it joins
neighbouring raw bytes to one read, which older kernels get wrong across the end of a tag (CVE-2023-0179)."""


@dataclass(frozen=True, kw_only=True)
class _Envelope:
    """How the packets of an upper device lie in the frame.

    Attributes:
        chain: the chain for the inner packets.
        matched_by: text that matches the outer headers.
        start: byte of the frame where the inner packet begins; the two bytes before it name its protocol.
        unseen: bytes that the kernel keeps beside the frame and counts in no length: the outermost tag.
        session: whether it is a PPP session, with protocol numbers of PPP; otherwise it has EtherTypes.
    """

    chain: str
    matched_by: str
    start: int
    unseen: int = 0
    session: bool = False

    def at(self, offset: int, size: int) -> str:
        """Bytes of the inner packet, by their offset in the frame."""
        return f"@ll,{(self.start + offset) * 8},{size * 8}"

    def carries(self, ethertype: int) -> str:
        protocol = _PPP_NUMBERS[ethertype] if self.session else ethertype
        return f"{self.at(-2, 2)} {protocol:#06x}"

    def length(self, *sizes: int) -> str:
        return f"meta length {quote_set(tuple(self.start - self.unseen + size for size in sizes))}"

    def protocols(self, match: Match, version: int) -> str:
        """Match the protocol above IP: TCP and UDP, or ICMPv6. An IPv4 header with options is refused."""
        numbers = quote_set(match.protocols) if len(match.protocols) > 1 else str(match.protocols[0])
        if version == 4:
            return f"{self.at(0, 1)} {_NO_OPTIONS} {self.at(9, 1)} {numbers}"
        return f"{self.at(6, 1)} {numbers}"

    def ports(self, match: Match, version: int, context: RenderContext) -> str:
        """Match the ports of TCP and UDP: both at once if there is one of each."""
        start = 20 if version == 4 else IPV6_HEADER
        source, target = (
            [int(str(port)) for port in context.require(ports)] if ports else []
            for ports in (match.source_ports, match.destination_ports)
        )
        if len(source) == len(target) == 1:
            return f"{self.at(start, 4)} {source[0] << 16 | target[0]:#010x}"
        sides = ((start, source), (start + 2, target))
        return " ".join(f"{self.at(place, 2)} {quote_set(ports)}" for place, ports in sides if ports)

    def transport(self, permit: Permit, version: int, context: RenderContext) -> str:
        """Match all that a row requires of a TCP or UDP packet, except its addresses."""
        match = permit.match
        require_rendered(match, "owner", "protocols", "source_ports", "destination_ports", "destinations")
        ethertype = IPV4 if version == 4 else IPV6
        asked = (
            self.carries(ethertype),
            render_owner(match.owner, context.identity),
            self.protocols(match, version),
            self.ports(match, version, context),
        )
        return " ".join(part for part in asked if part)


_PPP_NUMBERS = {IPV4: 0x0021, IPV6: 0x0057}
_FIRST_TAG = f"@ll,96,16 {TAGS}"
_TWO_TAGS = _Envelope(
    chain="two_tags", matched_by=f"meta protocol {VLAN:#06x} {_FIRST_TAG} @ll,128,16 {VLAN:#06x}", start=22, unseen=4
)
_SESSION = _Envelope(
    chain="session",
    # Version and type 1, code 0 (RFC 2516 4).
    matched_by=f"meta protocol {PPPOE_SESSION:#06x} @ll,96,16 {PPPOE_SESSION:#06x} @ll,112,16 0x1100",
    start=22,
    session=True,
)
_TAGGED_SESSION = _Envelope(
    chain="tagged_session",
    matched_by=f"meta protocol {PPPOE_SESSION:#06x} {_FIRST_TAG} @ll,128,16 {PPPOE_SESSION:#06x} @ll,144,16 0x1100",
    start=26,
    unseen=4,
    session=True,
)
_ENVELOPES = (_TWO_TAGS, _SESSION, _TAGGED_SESSION)


def envelope_rules() -> tuple[Rule, ...]:
    """The rules of a card's own chain about encapsulation: the jump to each chain, and PPPoE discovery."""
    require_rendered(permits.PPPOE.match, "owner", "ethertype", "messages")
    (message,) = permits.PPPOE.match.messages
    codes = ", ".join(f"{code:#04x}" for code in message.types)
    number = f"meta protocol {PPPOE_DISCOVERY:#06x}"
    root = f"meta skuid {quote_values(ROOT_UIDS)}"
    if permits.PPPOE.match.owner is not Owner.ROOT:
        raise ValueError("this form is for root alone")
    return (
        *(
            accept(
                permits.PPPOE,
                f"{number} {place} {PPPOE_DISCOVERY:#06x} @ll,{bit},8 0x11 {root} @ll,{bit + 8},8 {{ {codes} }} "
                f"meta length 0-{message.longest}",
            )
            for place, bit in (("@ll,96,16", 112), (f"{_FIRST_TAG} @ll,128,16", 144))
        ),
        *(Rule(text=f"{form.matched_by} goto {form.chain}") for form in _ENVELOPES),
    )


def build_carried_chains(
    identity: Identity, dhcp_servers: tuple[Address, ...], on_link: OnLink | None
) -> tuple[Chain, ...]:
    """The chains that `envelope_rules` jump to: which encapsulated packets may leave a card.

    Args:
        identity: who may use the wire.
        dhcp_servers: on-link gateways, to which a DHCP client may also send.
        on_link: our own addresses, and the neighbours that the kernel may talk to; None where that is not known.
    """
    context = RenderContext(identity=identity, values={RuntimeValue.GATEWAYS: dhcp_servers})
    last = Rule(text="counter drop", comment="no other frame, whoever made it")
    return tuple(
        Chain(
            name=form.chain,
            rules=(
                *(_control_rules(form) if form.session else ()),
                *_packet_rules(form, context, on_link),
                last,
            ),
        )
        for form in _ENVELOPES
    )


def _control_rules(form: _Envelope) -> tuple[Rule, ...]:
    require_rendered(permits.PPP_CONTROL.match, "ethertype", "messages")
    (message,) = permits.PPP_CONTROL.match.messages
    control = f"{form.at(-2, 2)} {{ {', '.join(f'{word:#06x}' for word in message.types)} }}"
    return (
        Rule(text=f"{control} meta skuid != {NO_UID} drop", comment="made by a program: pppd writes to the kernel"),
        accept(permits.PPP_CONTROL, f"{control} meta length 0-{message.longest}"),
    )


def _packet_rules(form: _Envelope, context: RenderContext, on_link: OnLink | None) -> tuple[Rule, ...]:
    ipv4, ipv6 = form.carries(IPV4), form.carries(IPV6)
    tunnel4 = ipaddress.IPv4Network(names.TUN_IPV4_SUBNET)
    tunnel6 = ipaddress.IPv6Network(names.TUN_IPV6_SUBNET)
    tunnel = "the tunnel's addresses are never on a wire"
    # In a PPP session IPCP assigns the addresses.
    dhcp = () if form.session else context.require(permits.DHCP.match.destinations)
    return (
        Rule(text=f"{ipv4} {_inside(form.at(12, 4), tunnel4)} drop", comment=tunnel),
        Rule(text=f"{ipv6} {form.at(8, 8)} {_prefix(tunnel6)} drop", comment=tunnel),
        *_core_rules(form, context),
        *(() if form.session else _arp_rules(form, context.identity, on_link)),
        *_discovery_rules(form, ipv6, context.identity, on_link),
        *(
            accept(permit, f"{form.transport(permit, version, context)} {_to(form, place)}")
            for permit, version, places in (
                (permits.DHCP, 4, dhcp),
                (permits.DHCPV6, 6, context.require(permits.DHCPV6.match.destinations)),
            )
            for place in places
        ),
    )


def _core_rules(form: _Envelope, context: RenderContext) -> tuple[Rule, ...]:
    match = permits.CORE.match
    places = context.require(match.destinations) if match.destinations else ()
    rules = []
    for version in match.address_versions:
        text = form.transport(permits.CORE, version, context)
        near = [place for place in places if ipaddress.ip_network(str(place)).version == version]
        ends = [f" {_to(form, place)}" for place in near] if match.destinations else [""]
        rules += [accept(permits.CORE, f"{text}{end}") for end in ends]
    return tuple(rules)


def _arp_rules(form: _Envelope, identity: Identity, on_link: OnLink | None) -> tuple[Rule, ...]:
    """As behind one tag (policy/plumbing.py), RFC 826."""
    arp = form.carries(ARP)
    require_rendered(permits.ARP_SEARCH.match, "owner", "ethertype", "messages")
    require_rendered(permits.ARP_OWN.match, "ethertype", "messages")
    uids = render_owner(permits.ARP_SEARCH.match.owner, identity)
    (search,) = permits.ARP_SEARCH.match.messages
    operation = form.at(6, 2)
    shape = f"{form.length(*search.sizes)} {form.at(0, 2)} & 0xffff == 0x0001 {form.at(2, 4)} 0x08000604"
    rules = [
        accept(permits.ARP_SEARCH, f"{arp} {uids} {shape} {operation} {_quote_words(search.types)}"),
        Rule(text=f"{arp} meta skuid != {NO_UID} drop", comment="made by a program: only the kernel itself speaks so"),
    ]
    if on_link is not None and not on_link.own_ipv4:
        return tuple(rules)
    for message in permits.ARP_OWN.match.messages:
        (kind,) = message.types
        # A request does not know the hardware address of its target.
        unknown = f" {form.at(18, 6)} 0x0" if kind == permits.REQUEST else ""
        kernels = f"{arp} {shape} {operation} {kind:#06x}{unknown}"
        if on_link is None:
            rules.append(accept(permits.ARP_OWN, kernels))
            continue
        mine = f"{form.at(14, 4)} {{ {', '.join(f'{int(address):#010x}' for address in on_link.own_ipv4)} }}"
        # A probe for a free address has no sender address yet.
        nobody = () if kind == permits.REQUEST else (ipaddress.IPv4Network("0.0.0.0/32"),)
        rules += [
            accept(permits.ARP_OWN, f"{kernels} {mine} {_inside(form.at(24, 4), net)}", "ARP: this link only")
            for net in (*on_link.networks_ipv4, *nobody)
        ]
    return tuple(rules)


def _discovery_rules(form: _Envelope, ipv6: str, identity: Identity, on_link: OnLink | None) -> tuple[Rule, ...]:
    """As behind one tag (policy/plumbing.py), RFC 4861 4. No MLD: where switches listen to it, there is one tag."""
    icmp = f"{ipv6} {form.at(6, 1)} {ICMPV6} {form.at(40, 1)}"
    sought = permits.ROUTER_SEARCH.match
    require_rendered(sought, "owner", "protocols", "destinations", "messages", "hop_limit")
    (search,) = sought.messages
    uids = render_owner(sought.owner, identity)
    (kind,) = search.types

    def by_kernel(permit: Permit, message: MessageForm) -> str:
        require_discovery_form(permit)
        # Payload length, next header and hop limit at once; then type and code.
        (size,) = message.sizes
        words = ", ".join(f"{kind << 8 | (message.code or 0):#06x}" for kind in message.types)
        word = size << 16 | ICMPV6 << 8 | (permit.match.hop_limit or 0)
        return (
            f"{ipv6} {form.at(4, 4)} {word:#010x} {form.at(0, 4)} & 0x000fffff == 0x0 "
            f"{form.at(40, 2)} {{ {words} }} {form.length(IPV6_HEADER + size)}"
        )

    (routers,) = permits.ROUTER_SOLICITATION.match.fixed_destinations
    every_router = _to(form, routers)
    unreserved = f"{form.at(44, 4)} & 0x1fffffff == 0x0"
    to_group = f"{form.at(24, 8)} 0xff02000000000000"
    to_neighbour = _to(form, permits.LINK_LOCAL)
    elsewhere: tuple[Rule, ...] = ()
    if on_link is not None:
        networks = tuple(dict.fromkeys((LINK_LOCAL, *on_link.networks_ipv6)))
        prefixes = ", ".join(_prefix(network) for network in networks)
        target = f"{form.at(48, 8)} {{ {prefixes} }}"
        to_group, to_neighbour = f"{to_group} {target}", f"{form.at(24, 8)} {{ {prefixes} }} {target}"
        # Duplicate address detection has no source address yet.
        ours = f"{form.at(8, 8)} != {{ 0x0000000000000000, {prefixes} }}"
        elsewhere = (Rule(text=f"{ipv6} {form.at(6, 1)} {ICMPV6} {ours} drop", comment="from no address of this link"),)
    return (
        accept(
            permits.ROUTER_SEARCH,
            f"{icmp} {kind} {uids} {form.at(7, 1)} {sought.hop_limit} {_to(form, *sought.fixed_destinations)} "
            f"{form.length(*(IPV6_HEADER + size for size in search.sizes))}",
        ),
        Rule(
            text=f"{icmp} {quote_set(permits.KERNELS_OWN)} meta skuid != {NO_UID} drop",
            comment="made by a program: only the kernel itself speaks so",
        ),
        *elsewhere,
        *(
            accept(
                permits.ROUTER_SOLICITATION,
                f"{by_kernel(permits.ROUTER_SOLICITATION, message)} {form.at(44, 4)} 0x0"
                f"{_option(form.at(48, 2), message)} {every_router}",
                f"{permits.ROUTER_SOLICITATION.comment}: {message.says}",
            )
            for message in permits.ROUTER_SOLICITATION.match.messages
        ),
        *(
            accept(
                permits.NEIGHBOURS,
                f"{by_kernel(permits.NEIGHBOURS, message)} {unreserved}{_option(form.at(64, 2), message)} {whom}",
                "IPv6 neighbour discovery, on this link only",
            )
            for message in permits.NEIGHBOURS.match.messages
            for whom in (to_group, to_neighbour)
        ),
    )


def _option(field: str, message: MessageForm) -> str:
    if not message.options:
        return ""
    return f" {field} {_quote_words(message.options) if len(message.options) > 1 else f'{message.options[0]:#06x}'}"


def _quote_words(words: tuple[int, ...]) -> str:
    """A set of two-byte values."""
    return f"{{ {', '.join(f'{word:#06x}' for word in words)} }}"


def _to(form: _Envelope, place: Value) -> str:
    """Match a destination: an address or a network."""
    network = ipaddress.ip_network(str(place))
    if isinstance(network, ipaddress.IPv4Network):
        return _inside(form.at(16, 4), network)
    if network.prefixlen == network.max_prefixlen:
        return f"{form.at(24, 16)} {int(network.network_address):#034x}"
    size = -(-network.prefixlen // 8)
    mask, value = (int(word) >> 8 * (16 - size) for word in (network.netmask, network.network_address))
    return f"{form.at(24, size)} & {mask:#0{2 + 2 * size}x} == {value:#0{2 + 2 * size}x}"


def _inside(field: str, network: ipaddress.IPv4Network) -> str:
    """Match an IPv4 address in a network."""
    if network.prefixlen == network.max_prefixlen:
        return f"{field} {int(network.network_address):#010x}"
    return f"{field} & {int(network.netmask):#010x} == {int(network.network_address):#010x}"


def _prefix(network: ipaddress.IPv6Network) -> str:
    """The first eight bytes of a network's address."""
    return f"{int(network.network_address) >> 64:#018x}"
