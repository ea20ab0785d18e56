# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of what may pass: one row for each thing that may leave, enter the tunnel, come in or be forwarded.

Nothing else passes. Base table, wire guard, egress guard, frame guard and bridge guard are rendered from these rows,
and so are the tables in docs/architecture.md and SECURITY.md and the output of `psiphon-vpn rules explain`. The judge
of captured frames (`psiphon_lab.judge`) is not: it is written from the security policy, or a wrong row would acquit
itself.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

from psiphon_vpn.policy import names
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
    InterfaceKind,
    Match,
    MessageForm,
    Owner,
    Permit,
    RuntimeValue,
    mark,
)
from psiphon_vpn.policy.model import State
from psiphon_vpn.policy.own_tables import BASE, BRIDGES, EGRESS, FRAMES, GUARD

EVERY_STATE: Final = tuple(State)
CONNECTING: Final = (State.CONNECTING, State.VERIFYING, State.OPEN)
OPEN: Final = (State.OPEN,)

IP_LAYERS: Final = (BASE, GUARD, EGRESS, FRAMES, BRIDGES)
"""An IP packet that leaves on a wire must pass every one of these that is loaded."""
FRAME_LAYERS: Final = (EGRESS, FRAMES, BRIDGES)
"""The layers that see frames other than IP."""
STATIC_LAYERS: Final = (GUARD, FRAMES, BRIDGES)
"""The layers whose text stays the same, whatever the state and the links."""

# Refused within rows that would otherwise allow it, and refused whoever sends it.
NAME_PORTS: Final = (53, 137, 853, 5353, 5355)
"""Ports of name resolution: DNS, NetBIOS, DNS over TLS or QUIC, multicast DNS, LLMNR."""
KERNELS_OWN: Final = (131, 132, 133, 135, 136, 143)
"""ICMPv6 types that no program may send, except by `ROUTER_SEARCH`: a router would forward them to anybody."""

EVERYBODY: Final = IPv4Address("255.255.255.255")
# Where a unicast DHCP renewal may go besides the on-link gateways: ranges that are not routed on the internet.
PRIVATE_IPV4: Final = tuple(
    map(IPv4Network, ("10.0.0.0/8", "100.64.0.0/10", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"))
)
LINK_LOCAL: Final = IPv6Network("fe80::/10")
LINK_SCOPE: Final = IPv6Network("ff02::/16")
EVERY_NODE: Final = IPv6Address("ff02::1")
EVERY_ROUTER: Final = IPv6Address("ff02::2")
EVERY_DHCPV6: Final = IPv6Address("ff02::1:2")
SOLICITED_NODE: Final = IPv6Network("ff02::1:ff00:0/104")
TUN_IPV4: Final = IPv4Address(names.TUN_IPV4)
TUN_IPV6: Final = IPv6Address(names.TUN_IPV6)
RESOLVER: Final = IPv4Address(names.RESOLVER_IPV4)

# Type of an option, and its length in units of eight bytes, here always one (RFC 4861 4.6, RFC 3971 5.3.2).
SOURCE_ADDRESS, TARGET_ADDRESS, NONCE = 0x0101, 0x0201, 0x0E01
REQUEST, ANSWER = 1, 2
"""Operations of ARP (RFC 826)."""
EAPOL_VERSIONS: Final = (1, 2, 3)
LONGEST_PPP: Final = 320
"""bytes of a frame: a log-in with a name of 255 (RFC 1994 4.1) is the longest that a line needs."""

# ------------------------------------------------------------------------------------------------ out, on a wire

CORE: Final = Permit(
    name="core",
    what=mark("TCP and UDP to a Psiphon server; with list_rescue TCP to a host of the server list"),
    why=mark("The connection to the server (R5). Its address is not known beforehand: the tunnel program tries many"),
    shows=mark(
        "That you talk to those servers, which Psiphon disguises; of a rescue, the host's address and name, in clear"
    ),
    match=Match(owner=Owner.PSIPHON_USER, by=InterfaceKind.WIRE, protocols=(TCP, UDP)),
    comment="psiphon-user, TCP and UDP",
    states=CONNECTING,
    layers=IP_LAYERS,
    narrowed=(
        (
            BASE,
            (
                Difference.STATE,
                Difference.UPLINK,
                Difference.NAME_PORTS,
                Difference.NEXT_HOP,
                Difference.PROXY,
                Difference.CONTROL_GROUP,
            ),
        ),
    ),
)
CORE_NAMES: Final = Permit(
    name="core-names",
    what=mark("The tunnel program's own DNS queries"),
    why=mark("Only if you set bootstrap_dns: for a network where no server is found without it"),
    shows=mark("The names that the tunnel program looks up, in clear"),
    match=Match(
        owner=Owner.PSIPHON_USER,
        by=InterfaceKind.WIRE,
        protocols=(TCP, UDP),
        destinations=(RuntimeValue.RESOLVERS,),
        destination_ports=(53,),
    ),
    comment="the resolver that the configuration allows psiphon-tunnel-core",
    states=CONNECTING,
    layers=(BASE,),
    within=CORE,
    narrowed=((BASE, (Difference.STATE, Difference.UPLINK, Difference.CONTROL_GROUP)),),
)
ROUTER_SEARCH: Final = Permit(
    name="router-search",
    what=mark("A router solicitation"),
    why=mark("Network managers look for routers themselves (RFC 4861)"),
    shows=mark("Your MAC and link-local address, which the link sees anyhow"),
    match=Match(
        owner=Owner.NETWORK_MANAGER,
        by=InterfaceKind.WIRE,
        versions=(6,),
        protocols=(ICMPV6,),
        destinations=(EVERY_ROUTER,),
        messages=(MessageForm(types=(133,), code=0, sizes=(8, 16)),),
        hop_limit=255,
    ),
    comment="root or the network manager looks for a router",
    states=EVERY_STATE,
    layers=IP_LAYERS,
)
ROUTER_SOLICITATION: Final = Permit(
    name="router-solicitation",
    what=mark("A router solicitation, in exact form and length, without flow label or extension header"),
    why=mark("To have an IPv6 address at all (RFC 4861)"),
    shows=mark("Your MAC and link-local address, which the link sees anyhow"),
    match=Match(
        owner=Owner.KERNEL,
        by=InterfaceKind.WIRE,
        versions=(6,),
        protocols=(ICMPV6,),
        destinations=(EVERY_ROUTER,),
        messages=(
            MessageForm(types=(133,), code=0, sizes=(8,), says="RS before there is an address"),
            MessageForm(types=(133,), code=0, sizes=(16,), options=(SOURCE_ADDRESS,), says="RS"),
        ),
        hop_limit=255,
    ),
    comment="IPv6 neighbour discovery",
    states=EVERY_STATE,
    layers=IP_LAYERS,
    narrowed=((BASE, (Difference.LINK,)), (EGRESS, (Difference.LINK,))),
)
NEIGHBOURS: Final = Permit(
    name="neighbours",
    what=mark("Neighbour discovery, in exact form and length, with one option or none"),
    why=mark(
        "Without it the link does not work (RFC 4861, RFC 7527). Only the kernel's own messages pass, which have no "
        "owner: a program could use them to reach anybody, since routers forward them"
    ),
    shows=mark("Your MAC and link addresses, which the link sees anyhow"),
    match=Match(
        owner=Owner.KERNEL,
        by=InterfaceKind.WIRE,
        versions=(6,),
        protocols=(ICMPV6,),
        destinations=(EVERY_NODE, SOLICITED_NODE, RuntimeValue.PREFIXES),
        messages=(
            MessageForm(types=(135, 136), code=0, sizes=(24,), says="NS and NA without an option, on this link only"),
            MessageForm(
                types=(135,), code=0, sizes=(32,), options=(SOURCE_ADDRESS, NONCE), says="NS, on this link only"
            ),
            MessageForm(types=(136,), code=0, sizes=(32,), options=(TARGET_ADDRESS,), says="NA, on this link only"),
        ),
        hop_limit=255,
    ),
    comment="IPv6 neighbour discovery",
    states=EVERY_STATE,
    layers=IP_LAYERS,
    narrowed=((BASE, (Difference.LINK,)), (EGRESS, (Difference.LINK, Difference.TARGET))),
    widened=tuple((layer, (Difference.UNICAST,)) for layer in STATIC_LAYERS),
)
MLD: Final = Permit(
    name="mld",
    what=mark("MLD reports, version 1, of solicited-node groups, to the group itself, in exact form and length"),
    why=mark(
        "Switches with MLD snooping need them (RFC 2710). Version 2 would carry any groups and sources that a user "
        "joins, and Done (132) any group"
    ),
    shows=mark("Your link addresses, which the link sees anyhow"),
    match=Match(
        owner=Owner.KERNEL,
        by=InterfaceKind.WIRE,
        versions=(6,),
        protocols=(ICMPV6,),
        sources=(IPv6Address("::"), IPv6Network("fe80::/64")),
        destinations=(SOLICITED_NODE,),
        messages=(MessageForm(types=(131,), code=0, sizes=(24,)),),
        hop_limit=1,
    ),
    comment="MLD reports of solicited-node groups, sent by the kernel, on this link only",
    states=EVERY_STATE,
    layers=IP_LAYERS,
    narrowed=((EGRESS, (Difference.GROUPS,)),),
)
DHCP: Final = Permit(
    name="dhcp",
    what=mark("DHCP"),
    why=mark("To have an IPv4 address at all, and to keep it (RFC 2131)"),
    shows=mark("What your network manager sends in it, often the computer's name: turn that off there"),
    match=Match(
        owner=Owner.NETWORK_MANAGER,
        by=InterfaceKind.WIRE,
        versions=(4,),
        protocols=(UDP,),
        source_ports=(68,),
        destination_ports=(67,),
        destinations=(EVERYBODY, *PRIVATE_IPV4, RuntimeValue.GATEWAYS),
    ),
    comment="DHCP",
    states=EVERY_STATE,
    layers=IP_LAYERS,
    narrowed=tuple((layer, (Difference.NO_GATEWAY,)) for layer in STATIC_LAYERS),
)
DHCPV6: Final = Permit(
    name="dhcpv6",
    what=mark("DHCPv6"),
    why=mark("To have an IPv6 address where routers give none (RFC 8415)"),
    shows=mark("What your network manager sends in it, often the computer's name: turn that off there"),
    match=Match(
        owner=Owner.NETWORK_MANAGER,
        by=InterfaceKind.WIRE,
        versions=(6,),
        protocols=(UDP,),
        source_ports=(546,),
        destination_ports=(547,),
        destinations=(LINK_LOCAL, EVERY_DHCPV6),
    ),
    comment="DHCPv6",
    states=EVERY_STATE,
    layers=IP_LAYERS,
)
ARP_SEARCH: Final = Permit(
    name="arp-search",
    what=mark("ARP for IPv4 on Ethernet, 42 bytes, before there is an address"),
    why=mark("The network manager checks whether an address is taken before using it (RFC 5227)"),
    shows=mark("Your MAC address, and the address that is asked about"),
    match=Match(
        owner=Owner.NETWORK_MANAGER,
        by=InterfaceKind.WIRE,
        versions=(),
        ethertype=ARP,
        messages=(MessageForm(types=(REQUEST, ANSWER), sizes=(28,)),),
    ),
    comment="ARP: root or the network manager asks whether an address is taken",
    states=EVERY_STATE,
    layers=FRAME_LAYERS,
)
ARP_OWN: Final = Permit(
    name="arp",
    what=mark("ARP for IPv4 on Ethernet, 42 bytes"),
    why=mark("Without it the link does not work (RFC 826)"),
    shows=mark("Your MAC and link addresses, which the link sees anyhow"),
    match=Match(
        owner=Owner.KERNEL,
        by=InterfaceKind.WIRE,
        versions=(),
        ethertype=ARP,
        messages=(
            MessageForm(types=(REQUEST,), sizes=(28,), says="who on this link has an address"),
            MessageForm(types=(ANSWER,), sizes=(28,), says="to who asked on this link"),
        ),
    ),
    comment="ARP",
    states=EVERY_STATE,
    layers=FRAME_LAYERS,
    narrowed=((EGRESS, (Difference.ADDRESSES,)),),
)
EAPOL_OWN: Final = Permit(
    name="eapol",
    what=mark("EAPOL, versions 1 to 3"),
    why=mark("The log-in to the network comes before everything else: wpa_supplicant and iwd, by a packet socket"),
    shows=mark("The same as without this service"),
    match=Match(
        owner=Owner.ROOT,
        by=InterfaceKind.WIRE,
        versions=(),
        ethertype=EAPOL,
        messages=(MessageForm(types=(0, 1, 2, 3, 5)),),
    ),
    comment="EAPOL: the link's own log-in, by root",
    states=EVERY_STATE,
    layers=FRAME_LAYERS,
)
PPPOE: Final = Permit(
    name="pppoe",
    what=mark("PPPoE discovery"),
    why=mark("It finds the line, opens a session and ends it (RFC 2516)"),
    shows=mark("The same as without this service"),
    match=Match(
        owner=Owner.ROOT,
        by=InterfaceKind.WIRE,
        versions=(),
        ethertype=PPPOE_DISCOVERY,
        messages=(MessageForm(types=(0x09, 0x19, 0xA7), longest=LONGEST_PPP),),
    ),
    comment="PPPoE: root looks for a line, asks for a session, ends it",
    states=EVERY_STATE,
    layers=FRAME_LAYERS,
)
PPP_CONTROL: Final = Permit(
    name="ppp-control",
    what=mark("LCP, IPCP, IPv6CP, PAP and CHAP in a PPPoE session"),
    why=mark("It logs in to the line and keeps it up. pppd writes it to the kernel, so it has no owner"),
    shows=mark("The same as without this service"),
    match=Match(
        owner=Owner.KERNEL,
        by=InterfaceKind.WIRE,
        versions=(),
        ethertype=PPPOE_SESSION,
        messages=(MessageForm(types=(0xC021, 0x8021, 0x8057, 0xC023, 0xC223), longest=LONGEST_PPP),),
    ),
    comment="the session's own LCP, IPCP, IPv6CP, PAP and CHAP",
    states=EVERY_STATE,
    layers=FRAME_LAYERS,
)

# ---------------------------------------------------------------------------- guests on a bridge that root allowed

GUESTS: Final = Permit(
    name="guests",
    what=mark("TCP, UDP and ICMP to guests on a bridge that root allowed"),
    why=mark("Only after `psiphon-vpn bridge allow`"),
    shows=mark("Nothing to your network. To guests this computer's address there, and what programs here send them"),
    match=Match(
        by=InterfaceKind.GUESTS, protocols=(ICMP, TCP, UDP, ICMPV6), destinations=(RuntimeValue.GUEST_NETWORKS,)
    ),
    comment="to guests on a bridge that root allowed",
    states=EVERY_STATE,
    layers=(BASE, GUARD, BRIDGES),
    narrowed=((BASE, (Difference.BRIDGE,)), (BRIDGES, (Difference.PORT,))),
    widened=((GUARD, (Difference.PRIVATE,)), (BRIDGES, (Difference.ANYTHING,))),
)
GUESTS_DHCP: Final = Permit(
    name="guests-dhcp",
    what=mark("DHCP answers to guests that have no address yet"),
    why=mark("Only after `psiphon-vpn bridge allow`"),
    match=Match(
        by=InterfaceKind.GUESTS,
        protocols=(UDP,),
        source_ports=(67,),
        destination_ports=(68,),
        destinations=(EVERYBODY,),
    ),
    comment="DHCP answers to guests that have no address yet",
    states=EVERY_STATE,
    layers=(BASE, GUARD),
    within=GUESTS,
)
GUESTS_NEIGHBOURS: Final = Permit(
    name="guests-neighbours",
    what=mark("Neighbour discovery and router advertisements for guests"),
    why=mark("Only after `psiphon-vpn bridge allow`"),
    match=Match(
        by=InterfaceKind.GUESTS,
        versions=(6,),
        protocols=(ICMPV6,),
        destinations=(LINK_LOCAL, LINK_SCOPE),
        messages=(MessageForm(types=(134, 135, 136), code=0),),
        hop_limit=255,
    ),
    comment="neighbour discovery and router advertisements for guests",
    states=EVERY_STATE,
    layers=(BASE, GUARD),
    within=GUESTS,
)

# ------------------------------------------------------------------------------------------------ into the tunnel

APPLICATIONS: Final = Permit(
    name="applications",
    what=mark("TCP and UDP of applications, over IPv4"),
    why=mark("This is what the tunnel is for"),
    match=Match(by=InterfaceKind.TUNNEL, versions=(4,), protocols=(TCP, UDP), lease=4),
    comment="applications, while the lease runs",
    states=OPEN,
    layers=(BASE, GUARD),
    narrowed=((BASE, (Difference.STATE, Difference.LEASE, Difference.TUNNEL)),),
    widened=((GUARD, (Difference.ANYTHING,)),),
)
APPLICATIONS_IPV6: Final = Permit(
    name="applications-ipv6",
    what=mark("TCP and UDP of applications, over IPv6; not to port 53, so that programs send DNS queries over IPv4"),
    why=mark("This is what the tunnel is for"),
    match=Match(by=InterfaceKind.TUNNEL, versions=(6,), protocols=(TCP, UDP), lease=6),
    comment="applications, while the lease runs and the tunnel carries IPv6",
    states=OPEN,
    layers=(BASE,),
    within=APPLICATIONS,
    narrowed=((BASE, (Difference.STATE, Difference.LEASE, Difference.TUNNEL)),),
)
NAMES: Final = Permit(
    name="names",
    what=mark("DNS queries, to the resolver inside the tunnel"),
    why=mark("Every query goes there, whatever resolv.conf says (R11)"),
    match=Match(
        by=InterfaceKind.TUNNEL, protocols=(TCP, UDP), destinations=(RESOLVER,), destination_ports=(53,), lease=4
    ),
    comment="names, asked of the resolver inside the tunnel",
    states=OPEN,
    layers=(BASE,),
    within=APPLICATIONS,
    narrowed=((BASE, (Difference.STATE, Difference.LEASE)),),
)
PROBE: Final = Permit(
    name="probe",
    what=mark("The service's check that the tunnel carries packets"),
    why=mark(
        "The tunnel is checked before it is opened. psiphon-user sends nothing else here: the tunnel program must "
        "not loop"
    ),
    match=Match(
        owner=Owner.PSIPHON_USER,
        by=InterfaceKind.TUNNEL,
        versions=(4,),
        protocols=(UDP,),
        sources=(TUN_IPV4,),
        destinations=(RESOLVER,),
        destination_ports=(53,),
    ),
    comment="the service asks the resolver whether the tunnel carries packets",
    states=CONNECTING,
    layers=(BASE,),
    within=APPLICATIONS,
    narrowed=((BASE, (Difference.STATE,)),),
)
PROBE_IPV6: Final = Permit(
    name="probe-ipv6",
    what=mark("The service's check that the tunnel carries IPv6"),
    why=mark("IPv6 is checked and opened separately"),
    match=Match(
        owner=Owner.PSIPHON_USER,
        by=InterfaceKind.TUNNEL,
        versions=(6,),
        protocols=(UDP,),
        sources=(TUN_IPV6,),
        destinations=(RuntimeValue.PROBED,),
        destination_ports=(53,),
    ),
    comment="the service asks whether the tunnel carries IPv6",
    states=CONNECTING,
    layers=(BASE,),
    within=APPLICATIONS,
    narrowed=((BASE, (Difference.STATE,)),),
)

# ---------------------------------------------------------------------------------------------------- on loopback

LOOPBACK: Final = Permit(
    name="loopback",
    what=mark("Everything from this machine to itself, except to the SOCKS proxy's port"),
    why=mark("It reaches no network"),
    match=Match(by=InterfaceKind.LOOPBACK),
    comment="this machine to itself",
    states=EVERY_STATE,
    layers=(BASE, GUARD),
)
SOCKS: Final = Permit(
    name="socks",
    what=mark("The tunnel program's SOCKS proxy"),
    why=mark("The proxy leads into the tunnel, and is leased like it"),
    match=Match(by=InterfaceKind.LOOPBACK, protocols=(TCP,), destination_ports=(RuntimeValue.SOCKS_PORT,), lease=4),
    comment="the core's SOCKS proxy while the lease runs",
    states=OPEN,
    layers=(BASE,),
    within=LOOPBACK,
    narrowed=((BASE, (Difference.STATE, Difference.LEASE)),),
)

# ------------------------------------------------------------------------------------------------------ coming in

LOOPBACK_IN: Final = Permit(
    name="loopback-in",
    what=mark("Everything from this machine to itself"),
    why=mark("It comes from no network"),
    match=Match(by=InterfaceKind.LOOPBACK),
    comment="this machine to itself",
    states=EVERY_STATE,
    layers=(BASE,),
)
CORE_ANSWERS: Final = Permit(
    name="core-answers",
    what=mark("Answers to psiphon-user's own flows, and ICMP errors about them"),
    why=mark(
        "The connection to the server and its path MTU. A flow that is older than the lock has no mark and is dropped"
    ),
    match=Match(flow=Flow.OWN_REPLIES),
    comment="answers to psiphon-user, and path MTU errors about its flows",
    states=EVERY_STATE,
    layers=(BASE,),
)
NEIGHBOURS_IN: Final = Permit(
    name="neighbours-in",
    what=mark("Neighbour discovery and router advertisements"),
    why=mark("The link needs it. Advertised routes go to the main table, which applications never use"),
    match=Match(
        versions=(6,), protocols=(ICMPV6,), messages=(MessageForm(types=(134, 135, 136), code=0),), hop_limit=255
    ),
    comment="IPv6 neighbour discovery: RA, NS, NA from this link",
    states=EVERY_STATE,
    layers=(BASE,),
)
MLD_QUERIES: Final = Permit(
    name="mld-queries",
    what=mark("MLD queries"),
    why=mark("The kernel answers them with the reports that switches need"),
    match=Match(
        versions=(6,), protocols=(ICMPV6,), sources=(LINK_LOCAL,), messages=(MessageForm(types=(130,)),), hop_limit=1
    ),
    comment="MLD queries from this link",
    states=EVERY_STATE,
    layers=(BASE,),
)
DHCP_ANSWERS: Final = Permit(
    name="dhcp-answers",
    what=mark("DHCP answers"),
    why=mark("To have an IPv4 address at all"),
    match=Match(protocols=(UDP,), source_ports=(67,), destination_ports=(68,)),
    comment="DHCP answers",
    states=EVERY_STATE,
    layers=(BASE,),
)
DHCPV6_ANSWERS: Final = Permit(
    name="dhcpv6-answers",
    what=mark("DHCPv6 answers"),
    why=mark("To have an IPv6 address where routers give none"),
    match=Match(versions=(6,), protocols=(UDP,), sources=(LINK_LOCAL,), source_ports=(547,), destination_ports=(546,)),
    comment="DHCPv6 answers",
    states=EVERY_STATE,
    layers=(BASE,),
)
TUNNEL_ANSWERS: Final = Permit(
    name="tunnel-answers",
    what=mark("Answers out of the tunnel"),
    why=mark("Nothing else comes in through the tunnel"),
    match=Match(by=InterfaceKind.TUNNEL, flow=Flow.REPLIES),
    comment="answers out of the tunnel",
    states=EVERY_STATE,
    layers=(BASE,),
)
GUEST_ANSWERS: Final = Permit(
    name="guest-answers",
    what=mark("Answers of guests on a bridge that root allowed"),
    why=mark("Only after `psiphon-vpn bridge allow`"),
    match=Match(by=InterfaceKind.GUESTS, flow=Flow.REPLIES),
    comment="answers of guests on a bridge that root allowed",
    states=EVERY_STATE,
    layers=(BASE,),
)
GUEST_DHCP: Final = Permit(
    name="guest-dhcp",
    what=mark("DHCP requests of guests"),
    why=mark("Only after `psiphon-vpn bridge allow`"),
    match=Match(by=InterfaceKind.GUESTS, protocols=(UDP,), source_ports=(68,), destination_ports=(67,)),
    comment="guests ask for an address",
    states=EVERY_STATE,
    layers=(BASE,),
)
GUEST_NAMES: Final = Permit(
    name="guest-names",
    what=mark("DNS queries of guests, to this machine's own address on the bridge"),
    why=mark("Only after `psiphon-vpn bridge allow`"),
    match=Match(
        by=InterfaceKind.GUESTS,
        protocols=(TCP, UDP),
        sources=(RuntimeValue.GUEST_NETWORKS,),
        destinations=(RuntimeValue.GUEST_OWN,),
        destination_ports=(53,),
    ),
    comment="guests ask this machine for names",
    states=EVERY_STATE,
    layers=(BASE,),
)
GUEST_ROUTERS: Final = Permit(
    name="guest-routers",
    what=mark("Router solicitations of guests"),
    why=mark("Only after `psiphon-vpn bridge allow`"),
    match=Match(
        by=InterfaceKind.GUESTS,
        versions=(6,),
        protocols=(ICMPV6,),
        messages=(MessageForm(types=(133,), code=0),),
        hop_limit=255,
    ),
    comment="guests look for a router",
    states=EVERY_STATE,
    layers=(BASE,),
)

# ------------------------------------------------------------------------------------------------------ forwarded

CONTAINERS: Final = Permit(
    name="containers",
    what=mark("TCP and UDP of containers and virtual machines, over IPv4, translated to the TUN's own address"),
    why=mark("They go through the tunnel or nowhere (R19). Hosts on a wire are not among them"),
    match=Match(by=InterfaceKind.CONTAINERS, into=InterfaceKind.TUNNEL, versions=(4,), protocols=(TCP, UDP), lease=4),
    comment="containers into the tunnel, while the lease runs",
    states=OPEN,
    layers=(BASE, GUARD),
    narrowed=((BASE, (Difference.STATE, Difference.LEASE, Difference.TUNNEL)),),
    widened=((GUARD, (Difference.ANYTHING,)),),
)
CONTAINERS_IPV6: Final = Permit(
    name="containers-ipv6",
    what=mark("TCP and UDP of containers and virtual machines, over IPv6, translated to the TUN's own address"),
    why=mark("They go through the tunnel or nowhere (R19)"),
    match=Match(by=InterfaceKind.CONTAINERS, into=InterfaceKind.TUNNEL, versions=(6,), protocols=(TCP, UDP), lease=6),
    comment="containers into the tunnel, while the lease runs and it carries IPv6",
    states=OPEN,
    layers=(BASE,),
    within=CONTAINERS,
    narrowed=((BASE, (Difference.STATE, Difference.LEASE, Difference.TUNNEL)),),
)
CONTAINER_NAMES: Final = Permit(
    name="container-names",
    what=mark("DNS queries of containers, to the resolver inside the tunnel"),
    why=mark("Every query goes there (R11)"),
    match=Match(
        by=InterfaceKind.CONTAINERS,
        into=InterfaceKind.TUNNEL,
        protocols=(TCP, UDP),
        destinations=(RESOLVER,),
        destination_ports=(53,),
        lease=4,
    ),
    states=OPEN,
    layers=(BASE,),
    within=CONTAINERS,
    narrowed=((BASE, (Difference.STATE, Difference.LEASE)),),
)
CONTAINER_ANSWERS: Final = Permit(
    name="container-answers",
    what=mark("Answers out of the tunnel to containers"),
    why=mark("Nothing else comes in through the tunnel"),
    match=Match(by=InterfaceKind.TUNNEL, into=InterfaceKind.CONTAINERS, flow=Flow.REPLIES),
    comment="answers to containers",
    states=OPEN,
    layers=(BASE, GUARD),
    narrowed=((BASE, (Difference.STATE,)),),
)

ON_A_WIRE: Final = (
    *(CORE, CORE_NAMES, ROUTER_SEARCH, ROUTER_SOLICITATION, NEIGHBOURS, MLD, DHCP, DHCPV6),
    *(ARP_SEARCH, ARP_OWN, EAPOL_OWN, PPPOE, PPP_CONTROL),
)
TO_GUESTS: Final = (GUESTS, GUESTS_DHCP, GUESTS_NEIGHBOURS)
INTO_THE_TUNNEL: Final = (PROBE, PROBE_IPV6, NAMES, APPLICATIONS, APPLICATIONS_IPV6)
ON_LOOPBACK: Final = (LOOPBACK, SOCKS)
COMING_IN: Final = (
    *(LOOPBACK_IN, CORE_ANSWERS, NEIGHBOURS_IN, MLD_QUERIES, DHCP_ANSWERS, DHCPV6_ANSWERS, TUNNEL_ANSWERS),
    *(GUEST_ANSWERS, GUEST_DHCP, GUEST_NAMES, GUEST_ROUTERS),
)
FORWARDED: Final = (CONTAINERS, CONTAINERS_IPV6, CONTAINER_NAMES, CONTAINER_ANSWERS)
PERMITS: Final = (*ON_A_WIRE, *TO_GUESTS, *INTO_THE_TUNNEL, *ON_LOOPBACK, *COMING_IN, *FORWARDED)
"""All rows."""
