"""What keeps a link alive, in the one form and length in which it is sent: neighbour discovery, MLD, ARP, EAPOL.

In an inet table only the kernel itself speaks so without an owner. At a card's egress hook the frames of a macvlan
child and of a bridged virtual machine have no owner either, and are made by anybody in there. So every field that the
kernel does not choose is compared, and the length with it: what is left is told in SECURITY.md.

Raw bytes are named by base, offset and length in bits (nft(8), "Raw payload expression"): @ll begins with the frame,
@nh with the IP header, @th with what follows all IPv6 headers. nft 0.9.3 has no words for most of these fields.
"""

from __future__ import annotations

import ipaddress
from typing import TypeVar

from psiphon_vpn.policy.model import Identity
from psiphon_vpn.policy.onlink import OnLink
from psiphon_vpn.policy.ruleset import Rule
from psiphon_vpn.policy.values import quote_set

_Network = TypeVar("_Network", ipaddress.IPv4Network, ipaddress.IPv6Network)

ICMPV6 = 58
NO_UID = 0xFFFFFFFF
"""No user has this number (setuid(2)): a comparison with it says whether there is an owner at all."""
EAPOL_UIDS = (0,)
"""Who logs in to a network by a packet socket: wpa_supplicant and iwd as root, on cables, and on wireless cards whose
driver has no control port. What mac80211 sends for them (NL80211_CMD_CONTROL_PORT_FRAME) never meets the hook:
tests/guest/test_wireless.py measures both. A distribution that gives wpa_supplicant a user of its own has the second
way alone."""

ETHERNET_HEADER, IPV6_HEADER = 14, 40
LINK_LOCAL = ipaddress.IPv6Network("fe80::/64")
"""RFC 4291 2.5.6. A gateway with another prefix that begins with fe80 comes with the networks of the link."""
NO_IPV4, NO_IPV6 = ipaddress.IPv4Network(0), ipaddress.IPv6Network(0)
LINK_SCOPE = ("ff02::1", "ff02::1:ff00:0/104")
ANY_UNICAST = ("fe80::/10", "fc00::/7", "2000::/3")
SOLICITED_NODE = "ff02::1:ff00:0/104"

# The fields of an option (RFC 4861 4.6): its type, and its length in units of eight bytes, here always one.
SOURCE_ADDRESS, TARGET_ADDRESS, NONCE = 0x0101, 0x0201, 0x0E01
ROUTER_ALERT = 0x3A00050200000100
"""The header before an MLD report: ICMPv6 follows, router alert, two bytes of padding (RFC 2710 3, RFC 2711)."""
NO_FLOW_LABEL = "@nh,0,32 & 0x000fffff == 0x0"
NOTHING_RESERVED = "@th,32,32 & 0x1fffffff == 0x0"
"""The reserved bits of a solicitation, or of an advertisement after its three flags."""


def discovery_rules(
    identity: Identity, on_link: OnLink | None = None, *, ipv6: str = "", header: int = 0, targets: bool = False
) -> tuple[Rule, ...]:
    """Neighbour discovery and MLD: of the kernel, which has no uid. Routers are also looked for by network managers.

    Everything else of that form is made by a program, and a router would forward it to wherever its maker says. MLD is
    version 1 (policy/sysctls.py), whose report is sent to the very group that it names (RFC 2710 4): so the group is
    compared. Version 2 would carry whatever addresses a user joins.

    Args:
        identity: who may look for routers.
        on_link: whom the kernel may speak to; None for tables that outlive what is known of the links.
        ipv6: what tells IPv6 where the rules are not in a table of the internet protocols.
        header: bytes of a frame before its IP header.
        targets: whether frames of others pass here: then the addresses inside are compared too.
    """
    kind = f"{ipv6} meta l4proto {ICMPV6} icmpv6 type".lstrip()

    def length(*message: int) -> str:
        sizes = tuple(header + IPV6_HEADER + size for size in message)
        return f"meta length {sizes[0] if len(sizes) == 1 else quote_set(sizes)}"

    def kernels(message: int) -> str:
        # The next header too: an extension header before the message has room for anything.
        return (
            f"icmpv6 code 0 {length(message)} ip6 length {message} ip6 nexthdr {ICMPV6} ip6 hoplimit 255 "
            f"{NO_FLOW_LABEL}"
        )

    ends = f"ip6 daddr {quote_set((*LINK_SCOPE, *ANY_UNICAST))}"
    searching = "ip6 daddr ff02::2"
    if on_link is not None:
        # At a card's own hook a guest's prefix has no business.
        guests = () if targets else on_link.guests_ipv6
        networks = tuple(dict.fromkeys((LINK_LOCAL, *on_link.networks_ipv6, *guests)))
        source = f"ip6 saddr {_quote_networks(NO_IPV6, *networks)}"
        ends = f"{source} ip6 daddr {quote_set((*LINK_SCOPE, *map(str, networks)))}"
        searching = f"{source} {searching}"
        if targets:
            prefixes = (f"{int(network.network_address) >> 64:#018x}" for network in networks)
            ends += f" @th,64,64 {{ {', '.join(prefixes)} }}"
    return (
        Rule(
            text=f"{kind} 133 icmpv6 code 0 ip6 hoplimit 255 {length(8, 16)} ip6 daddr ff02::2 "
            f"meta skuid {quote_set(identity.network_manager_uids)} accept",
            comment="root or the network manager looks for a router",
        ),
        Rule(
            text=f"{kind} {{ 131, 132, 133, 135, 136, 143 }} meta skuid != {NO_UID} drop",
            comment="made by a program: only the kernel itself speaks so",
        ),
        Rule(
            text=f"{kind} 133 {kernels(8)} @th,32,32 0x0 {searching} accept",
            comment="IPv6 neighbour discovery: RS before there is an address",
        ),
        Rule(
            text=f"{kind} 133 {kernels(16)} @th,32,32 0x0 @th,64,16 {SOURCE_ADDRESS:#06x} {searching} accept",
            comment="IPv6 neighbour discovery: RS",
        ),
        Rule(
            text=f"{kind} {{ 135, 136 }} {kernels(24)} {NOTHING_RESERVED} {ends} accept",
            comment="IPv6 neighbour discovery: NS and NA without an option, on this link only",
        ),
        Rule(
            text=f"{kind} 135 {kernels(32)} {NOTHING_RESERVED} "
            f"@th,192,16 {{ {SOURCE_ADDRESS:#06x}, {NONCE:#06x} }} {ends} accept",
            comment="IPv6 neighbour discovery: NS, on this link only",
        ),
        Rule(
            text=f"{kind} 136 {kernels(32)} {NOTHING_RESERVED} @th,192,16 {TARGET_ADDRESS:#06x} {ends} accept",
            comment="IPv6 neighbour discovery: NA, on this link only",
        ),
        *_report_rules(kind, f"{length(32)} ip6 length 32 ip6 nexthdr 0", on_link if targets else None),
    )


def _quote_networks(*networks: _Network) -> str:
    """A set of networks of one family; nft refuses one whose elements overlap."""
    return quote_set(map(str, ipaddress.collapse_addresses(networks)))


def _report_rules(kind: str, length: str, on_link: OnLink | None) -> tuple[Rule, ...]:
    """MLDv1 reports: switches that listen need those of the solicited-node groups (RFC 4541 3), and no others.

    Args:
        kind: the beginning of a rule, up to the type.
        length: what compares the length: of the hop-by-hop header, eight bytes, and the report.
        on_link: our own groups, where they are known; else a user can have any of the 2^24 reported.
    """
    if on_link is not None and not on_link.groups:
        return ()
    group = f"ip6 daddr {SOLICITED_NODE}"
    if on_link is not None:
        tails = tuple(dict.fromkeys(f"{int(group) & 0xFFFFFF:#08x}" for group in on_link.groups))
        group = f"ip6 daddr {quote_set(on_link.groups)} @th,168,24 {{ {', '.join(tails)} }}"
    return (
        Rule(
            text=f"{kind} 131 icmpv6 code 0 ip6 hoplimit 1 {NO_FLOW_LABEL} {length} @nh,320,64 {ROUTER_ALERT:#018x} "
            f"ip6 saddr {_quote_networks(NO_IPV6, LINK_LOCAL)} {group} @th,32,32 0x0 "
            "@th,64,64 0xff02000000000000 @th,128,40 0x00000001ff accept",
            comment="MLD reports of solicited-node groups, sent by the kernel, on this link only",
        ),
    )


def arp_rules(identity: Identity, arp: str, on_link: OnLink | None, *, shift: int = 0) -> tuple[Rule, ...]:
    """ARP for IPv4 on Ethernet (RFC 826), 42 bytes: nothing pads a frame before the card does.

    Args:
        identity: who may ask for itself whether an address is taken (RFC 5227), before the machine has it.
        arp: what tells ARP.
        on_link: our own addresses and whom they may be told; None where that is not known.
        shift: bits by which a tag moves what follows it.
    """
    form = f"{arp} meta length 42 @ll,{112 + shift},48 0x000108000604 @ll,{160 + shift},16"
    asked = told = mine = ""
    rules = [
        Rule(
            text=f"{form} {{ 0x0001, 0x0002 }} meta skuid {quote_set(identity.network_manager_uids)} accept",
            comment="ARP: root or the network manager asks whether an address is taken",
        ),
        Rule(text=f"{arp} meta skuid != {NO_UID} drop", comment="made by a program: only the kernel itself speaks so"),
    ]
    if on_link is not None:
        if not on_link.own_ipv4:
            return tuple(rules)
        mine = f" arp saddr ip {quote_set(on_link.own_ipv4)}"
        asked = f" arp daddr ip {_quote_networks(*on_link.networks_ipv4)}"
        # Who asks whether an address is free has none yet.
        told = f" arp daddr ip {_quote_networks(NO_IPV4, *on_link.networks_ipv4)}"
    return (
        *rules,
        Rule(
            text=f"{form} 0x0001 @ll,{256 + shift},48 0x0{mine}{asked} accept",
            comment="ARP: who on this link has an address",
        ),
        Rule(
            text=f"{form} 0x0002{mine}{told} accept",
            comment="ARP: to who asked on this link",
        ),
    )


def eapol_rules(eapol: str) -> tuple[Rule, ...]:
    """EAPOL (IEEE 802.1X-2010 11.3): of root, versions 1 to 3, packet, start, log-off, key, and MACsec's key agreement.

    Args:
        eapol: what tells it.
    """
    return (
        Rule(
            text=f"{eapol} meta skuid {quote_set(EAPOL_UIDS)} @ll,112,8 {{ 1, 2, 3 }} "
            "@ll,120,8 { 0, 1, 2, 3, 5 } accept",
            comment="EAPOL: the link's own log-in, by root",
        ),
    )
