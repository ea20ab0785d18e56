"""What a card sends for a device above it: behind two VLAN tags (QinQ), or in a PPPoE session. Rules in raw bytes.

The kernel keeps the owner of a packet on its way through a VLAN, a bridge, a bond or a PPPoE session down to the card
(tried with real devices, `tests/guest/`). Behind one tag the egress hook still knows the protocol, so the rules are the
card's own (policy/guards.py). Behind two tags, or in a session, it sees an envelope, and no word of nft reaches what is
inside: every field is compared at its place in the frame. An IPv4 header with options has other places, and is refused.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from psiphon_vpn.policy import names
from psiphon_vpn.policy.model import Identity
from psiphon_vpn.policy.onlink import OnLink
from psiphon_vpn.policy.plumbing import (
    IPV6_HEADER,
    LINK_LOCAL,
    NO_UID,
    NONCE,
    SOURCE_ADDRESS,
    TARGET_ADDRESS,
)
from psiphon_vpn.policy.ruleset import Chain, Rule
from psiphon_vpn.policy.values import quote_set

IPV4, ARP, IPV6 = 0x0800, 0x0806, 0x86DD
VLAN, SERVICE_VLAN = 0x8100, 0x88A8
"""IEEE 802.1Q and 802.1ad."""
TAGS = f"{{ {VLAN:#06x}, {SERVICE_VLAN:#06x} }}"
TAG_BITS = 32
PPPOE_DISCOVERY, PPPOE_SESSION = 0x8863, 0x8864
"""RFC 2516 4."""
PPP_CONTROL = (0xC021, 0x8021, 0x8057, 0xC023, 0xC223)
"""LCP, IPCP, IPv6CP, and the two log-ins, PAP and CHAP (IANA, PPP Numbers)."""
LONGEST_CONTROL = 320
"""bytes of a frame: a log-in with a name of 255 (RFC 1994 4.1) is the longest that a line needs."""
TCP_AND_UDP = "{ 6, 17 }"
_NO_OPTIONS = "& 0x0f == 0x05"
"""A header of five words. Compared under a mask, as here and there below, it is read by itself: nft joins neighbouring
bytes to one reading, and across a tag's end older kernels read wrongly (CVE-2023-0179)."""


@dataclass(frozen=True, kw_only=True)
class _Envelope:
    """How the packets of an upper device lie in the frame.

    Attributes:
        chain: the chain for what is inside.
        told_by: what tells the envelope.
        start: byte of the frame where the packet begins; the two before it name its protocol.
        unseen: bytes of it that the kernel holds beside the frame, and counts in no length: the outermost tag.
        session: a PPP session; else there is Ethernet above.
    """

    chain: str
    told_by: str
    start: int
    unseen: int = 0
    session: bool = False

    def at(self, offset: int, size: int) -> str:
        """Bytes of the packet, by their place in the frame."""
        return f"@ll,{(self.start + offset) * 8},{size * 8}"

    def carries(self, ethertype: int) -> str:
        protocol = _PPP_NUMBERS[ethertype] if self.session else ethertype
        return f"{self.at(-2, 2)} {protocol:#06x}"

    def length(self, *sizes: int) -> str:
        return f"meta length {quote_set(tuple(self.start - self.unseen + size for size in sizes))}"


_PPP_NUMBERS = {IPV4: 0x0021, IPV6: 0x0057}
_FIRST_TAG = f"@ll,96,16 {TAGS}"
_TWO_TAGS = _Envelope(
    chain="two_tags", told_by=f"meta protocol {VLAN:#06x} {_FIRST_TAG} @ll,128,16 {VLAN:#06x}", start=22, unseen=4
)
_SESSION = _Envelope(
    chain="session",
    # Version and type 1, code 0 (RFC 2516 4).
    told_by=f"meta protocol {PPPOE_SESSION:#06x} @ll,96,16 {PPPOE_SESSION:#06x} @ll,112,16 0x1100",
    start=22,
    session=True,
)
_TAGGED_SESSION = _Envelope(
    chain="tagged_session",
    told_by=f"meta protocol {PPPOE_SESSION:#06x} {_FIRST_TAG} @ll,128,16 {PPPOE_SESSION:#06x} @ll,144,16 0x1100",
    start=26,
    unseen=4,
    session=True,
)
_ENVELOPES = (_TWO_TAGS, _SESSION, _TAGGED_SESSION)


def envelope_rules() -> tuple[Rule, ...]:
    """What a card's own chain says of envelopes: to which chain they go, and what brings a session about."""
    discovery = f"meta skuid 0 {{}} {{{{ 0x09, 0x19, 0xa7 }}}} meta length 0-{LONGEST_CONTROL} accept"
    comment = "PPPoE: root looks for a line, asks for a session, ends it"
    number = f"meta protocol {PPPOE_DISCOVERY:#06x}"
    return (
        Rule(
            text=f"{number} @ll,96,16 {PPPOE_DISCOVERY:#06x} @ll,112,8 0x11 " + discovery.format("@ll,120,8"),
            comment=comment,
        ),
        Rule(
            text=f"{number} {_FIRST_TAG} @ll,128,16 {PPPOE_DISCOVERY:#06x} @ll,144,8 0x11 "
            + discovery.format("@ll,152,8"),
            comment=comment,
        ),
        *(Rule(text=f"{form.told_by} goto {form.chain}") for form in _ENVELOPES),
    )


def build_carried_chains(
    identity: Identity, dhcp_targets: Iterable[ipaddress.IPv4Network], on_link: OnLink | None
) -> tuple[Chain, ...]:
    """The chains that `envelope_rules` name: what may leave a card inside of an envelope.

    Args:
        identity: who may use the wire.
        dhcp_targets: whom a DHCP client may ask.
        on_link: our own addresses, and whom the kernel may speak to; None where that is not known.
    """
    targets = tuple(dhcp_targets)
    last = Rule(text="counter drop", comment="no other frame, whoever made it")
    return tuple(
        Chain(
            name=form.chain,
            rules=(
                *(_control_rules(form) if form.session else ()),
                *_packet_rules(form, identity, () if form.session else targets, on_link),
                last,
            ),
        )
        for form in _ENVELOPES
    )


def _control_rules(form: _Envelope) -> tuple[Rule, ...]:
    control = f"{form.at(-2, 2)} {{ {', '.join(f'{word:#06x}' for word in PPP_CONTROL)} }}"
    return (
        Rule(text=f"{control} meta skuid != {NO_UID} drop", comment="made by a program: pppd writes to the kernel"),
        Rule(
            text=f"{control} meta length 0-{LONGEST_CONTROL} accept",
            comment="the session's own LCP, IPCP, IPv6CP, PAP and CHAP",
        ),
    )


def _packet_rules(
    form: _Envelope, identity: Identity, dhcp_targets: tuple[ipaddress.IPv4Network, ...], on_link: OnLink | None
) -> tuple[Rule, ...]:
    ipv4, ipv6 = form.carries(IPV4), form.carries(IPV6)
    tunnel4 = ipaddress.IPv4Network(names.TUN_IPV4_SUBNET)
    tunnel6 = ipaddress.IPv6Network(names.TUN_IPV6_SUBNET)
    tunnel = "the tunnel's addresses are never on a wire"
    uids = quote_set(identity.network_manager_uids)
    ask4 = f"{ipv4} meta skuid {uids} {form.at(0, 1)} {_NO_OPTIONS} {form.at(9, 1)} 17 {form.at(20, 4)} 0x00440043"
    ask6 = f"{ipv6} meta skuid {uids} {form.at(6, 1)} 17 {form.at(40, 4)} 0x02220223"
    return (
        Rule(text=f"{ipv4} {_inside(form.at(12, 4), tunnel4)} drop", comment=tunnel),
        Rule(text=f"{ipv6} {form.at(8, 8)} {_prefix(tunnel6)} drop", comment=tunnel),
        Rule(
            text=f"{ipv4} {identity.owner} {form.at(0, 1)} {_NO_OPTIONS} {form.at(9, 1)} {TCP_AND_UDP} accept",
            comment="psiphon-user, TCP and UDP",
        ),
        Rule(
            text=f"{ipv6} {identity.owner} {form.at(6, 1)} {TCP_AND_UDP} accept",
            comment="psiphon-user, TCP and UDP",
        ),
        *(() if form.session else _arp_rules(form, uids, on_link)),
        *_discovery_rules(form, ipv6, uids, on_link),
        *(Rule(text=f"{ask4} {_inside(form.at(16, 4), net)} accept", comment="DHCP") for net in dhcp_targets),
        Rule(text=f"{ask6} {form.at(24, 2)} & 0xffc0 == 0xfe80 accept", comment="DHCPv6"),
        Rule(text=f"{ask6} {form.at(24, 16)} {int(ipaddress.IPv6Address('ff02::1:2')):#034x} accept", comment="DHCPv6"),
    )


def _arp_rules(form: _Envelope, uids: str, on_link: OnLink | None) -> tuple[Rule, ...]:
    """As behind one tag (policy/plumbing.py), RFC 826."""
    arp = form.carries(ARP)
    shape = f"{form.length(28)} {form.at(0, 2)} & 0xffff == 0x0001 {form.at(2, 4)} 0x08000604"
    rules = [
        Rule(
            text=f"{arp} meta skuid {uids} {shape} {form.at(6, 2)} {{ 0x0001, 0x0002 }} accept",
            comment="ARP: root or the network manager asks whether an address is taken",
        ),
        Rule(text=f"{arp} meta skuid != {NO_UID} drop", comment="made by a program: only the kernel itself speaks so"),
    ]
    asking = f"{arp} {shape} {form.at(6, 2)} 0x0001 {form.at(18, 6)} 0x0"
    telling = f"{arp} {shape} {form.at(6, 2)} 0x0002"
    if on_link is None:
        return (*rules, *(Rule(text=f"{kernels} accept", comment="ARP") for kernels in (asking, telling)))
    if not on_link.own_ipv4:
        return tuple(rules)
    mine = f"{form.at(14, 4)} {{ {', '.join(f'{int(address):#010x}' for address in on_link.own_ipv4)} }}"
    # Who asks whether an address is free has none yet.
    told = (*on_link.networks_ipv4, ipaddress.IPv4Network("0.0.0.0/32"))
    return (
        *rules,
        *(
            Rule(text=f"{kernels} {mine} {_inside(form.at(24, 4), net)} accept", comment="ARP: this link only")
            for kernels, networks in ((asking, on_link.networks_ipv4), (telling, told))
            for net in networks
        ),
    )


def _discovery_rules(form: _Envelope, ipv6: str, uids: str, on_link: OnLink | None) -> tuple[Rule, ...]:
    """As behind one tag (policy/plumbing.py), RFC 4861 4. No MLD: where switches listen to it, there is one tag."""
    icmp = f"{ipv6} {form.at(6, 1)} 58 {form.at(40, 1)}"

    def message(size: int, *kinds: int) -> str:
        # Payload length, next header and hop limit at once; then type and code.
        words = ", ".join(f"{kind << 8:#06x}" for kind in kinds)
        return (
            f"{ipv6} {form.at(4, 4)} {size << 16 | 0x3AFF:#010x} {form.at(0, 4)} & 0x000fffff == 0x0 "
            f"{form.at(40, 2)} {{ {words} }} {form.length(IPV6_HEADER + size)}"
        )

    every_router = f"{form.at(24, 16)} {int(ipaddress.IPv6Address('ff02::2')):#034x}"
    unreserved = f"{form.at(44, 4)} & 0x1fffffff == 0x0"
    neighbours = (
        f"{message(24, 135, 136)} {unreserved}",
        f"{message(32, 135)} {unreserved} {form.at(64, 2)} {{ {SOURCE_ADDRESS:#06x}, {NONCE:#06x} }}",
        f"{message(32, 136)} {unreserved} {form.at(64, 2)} {TARGET_ADDRESS:#06x}",
    )
    to_group = f"{form.at(24, 8)} 0xff02000000000000"
    to_neighbour = f"{form.at(24, 2)} & 0xffc0 == 0xfe80"
    elsewhere: tuple[Rule, ...] = ()
    if on_link is not None:
        networks = tuple(dict.fromkeys((LINK_LOCAL, *on_link.networks_ipv6)))
        prefixes = ", ".join(_prefix(network) for network in networks)
        target = f"{form.at(48, 8)} {{ {prefixes} }}"
        to_group, to_neighbour = f"{to_group} {target}", f"{form.at(24, 8)} {{ {prefixes} }} {target}"
        # Who looks for its own address has none yet.
        ours = f"{form.at(8, 8)} != {{ 0x0000000000000000, {prefixes} }}"
        elsewhere = (Rule(text=f"{ipv6} {form.at(6, 1)} 58 {ours} drop", comment="from no address of this link"),)
    comment = "IPv6 neighbour discovery, on this link only"
    return (
        Rule(
            text=f"{icmp} 133 meta skuid {uids} {form.at(7, 1)} 255 {every_router} {form.length(48, 56)} accept",
            comment="root or the network manager looks for a router",
        ),
        Rule(
            text=f"{icmp} {{ 131, 132, 133, 135, 136, 143 }} meta skuid != {NO_UID} drop",
            comment="made by a program: only the kernel itself speaks so",
        ),
        *elsewhere,
        Rule(
            text=f"{message(8, 133)} {form.at(44, 4)} 0x0 {every_router} accept",
            comment="IPv6 neighbour discovery: RS before there is an address",
        ),
        Rule(
            text=f"{message(16, 133)} {form.at(44, 4)} 0x0 {form.at(48, 2)} {SOURCE_ADDRESS:#06x} {every_router} "
            "accept",
            comment="IPv6 neighbour discovery: RS",
        ),
        *(
            Rule(text=f"{kernels} {whom} accept", comment=comment)
            for kernels in neighbours
            for whom in (to_group, to_neighbour)
        ),
    )


def _inside(field: str, network: ipaddress.IPv4Network) -> str:
    """An address of four bytes in a network."""
    if network.prefixlen == network.max_prefixlen:
        return f"{field} {int(network.network_address):#010x}"
    return f"{field} & {int(network.netmask):#010x} == {int(network.network_address):#010x}"


def _prefix(network: ipaddress.IPv6Network) -> str:
    """The first eight bytes of an address."""
    return f"{int(network.network_address) >> 64:#018x}"
