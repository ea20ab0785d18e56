# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The static tables beside the base table: wire guard (B3), frame guard and egress guard (B4), and the ARP table."""

from psiphon_vpn.policy import names, permits
from psiphon_vpn.policy.encapsulation import TAG_BITS, TAGS, build_carried_chains, envelope_rules
from psiphon_vpn.policy.guests import GUEST_KINDS
from psiphon_vpn.policy.match import ARP, EAPOL, Permit, RuntimeValue
from psiphon_vpn.policy.model import Identity
from psiphon_vpn.policy.onlink import NOTHING, OnLink
from psiphon_vpn.policy.plumbing import ETHERNET_HEADER, arp_rules, discovery_rules, eapol_rules
from psiphon_vpn.policy.render_guests import guest_wire_rules
from psiphon_vpn.policy.render_rules import RenderContext, accept, render_match
from psiphon_vpn.policy.ruleset import Chain, Hook, Rule, Table
from psiphon_vpn.policy.shortcuts import frame_shortcuts, guard_shortcuts
from psiphon_vpn.policy.values import LOOPBACK, Address, InterfaceName
from psiphon_vpn.policy.wire import plumbing_rules, tunnel_address_rules

ETHERTYPE_IPV4, ETHERTYPE_IPV6 = 0x0800, 0x86DD


def build_wire_guard(
    identity: Identity, dhcp_servers: tuple[Address, ...] = (), *, bridges: tuple[InterfaceName, ...] = ()
) -> Table:
    """The wire guard: the same in every state, so that nothing has to manage it.

    Its table is owned by the netlink socket of a holder process (`flags owner`, Linux 5.12): no other program can
    flush or delete it, and it stays while the daemon is stopped, upgraded or broken.

    Args:
        identity: who may use the wire.
        dhcp_servers: on-link gateways.
        bridges: the bridges whose guests this machine may talk to. For `render_bridge_rules` alone.
    """
    # By name and type: the index changes with each new TUN, and a card can be given the name.
    into = f'oifname "{names.TUN_NAME}" meta oiftype {names.TUN_TYPE}'
    out_of = f'iifname "{names.TUN_NAME}" meta iiftype {names.TUN_TYPE}'
    core = accept(permits.CORE, render_match(permits.CORE.match, RenderContext(identity=identity)))
    local = (
        accept(permits.LOOPBACK, f"oif {LOOPBACK}"),
        accept(permits.APPLICATIONS, into, "not a wire"),
    )
    guests = guest_wire_rules(bridges)
    wire = (*tunnel_address_rules(), *plumbing_rules(identity, dhcp_servers), core, *guests)
    tail = Rule(text="counter drop", comment="nothing else on a wire")
    return Table(
        family="inet",
        name=names.GUARD_TABLE,
        flags="owner",
        chains=(
            Chain(
                name="output",
                hook=Hook(kind="filter", hook="output", priority=10, policy="drop"),
                rules=(*local, *guard_shortcuts(identity), *wire, tail),
            ),
            Chain(
                name="forward",
                hook=Hook(kind="filter", hook="forward", priority=10, policy="drop"),
                rules=(
                    accept(permits.CONTAINERS, into, "into the tunnel"),
                    accept(permits.CONTAINER_ANSWERS, f"{out_of} ct direction reply", "and its answers"),
                    tail,
                ),
            ),
            Chain(
                name="postrouting",
                hook=Hook(kind="filter", hook="postrouting", priority=310, policy="drop"),
                rules=(
                    *local,
                    *guard_shortcuts(identity),
                    *wire,
                    # By name alone: the input type is not known here, and chain forward has checked it.
                    accept(permits.CONTAINER_ANSWERS, f'iifname "{names.TUN_NAME}" ct direction reply'),
                    tail,
                ),
            ),
        ),
        heading="Psiphon wire guard: owned by the process that loaded it, the same in every state.",
    )


def _frame(ethertype: int, *, header: bool, tagged: bool = False) -> str:
    """Match a protocol in the socket buffer and, where frames have a header, in the header too.

    The header is matched as raw bytes: nft would drop `ether type` as redundant beside `meta protocol`. The kernel
    keeps the outermost VLAN tag beside the frame until the card sends it: raw bytes are read as if the tag were in its
    place (nft_payload.c, nft_payload_copy_vlan), and the socket buffer has the protocol behind the tag.
    """
    place = f" @ll,96,16 {TAGS} @ll,{96 + TAG_BITS},16" if tagged else " @ll,96,16"
    return f"meta protocol {ethertype:#06x}" + (f"{place} {ethertype:#06x}" if header else "")


def _egress_rules(
    identity: Identity, dhcp_servers: tuple[Address, ...], on_link: OnLink | None, *, header: bool
) -> tuple[Rule, ...]:
    context = RenderContext(
        identity=identity, values={RuntimeValue.GATEWAYS: dhcp_servers}, header=ETHERNET_HEADER if header else 0
    )
    last = Rule(text="counter drop", comment="no other frame, whoever made it")
    plain = _packet_rules(context, on_link, header=header)
    frames = {4: _frame(ETHERTYPE_IPV4, header=header), 6: _frame(ETHERTYPE_IPV6, header=header)}
    shortcuts = frame_shortcuts(context, frames)
    if not header:
        return (*shortcuts, *plain, last)
    return (
        *shortcuts,
        *arp_rules(identity, _frame(ARP, header=True), on_link),
        *eapol_rules(identity, _frame(EAPOL, header=True)),
        *plain,
        # Tagged frames: of a VLAN device above the card, or of a bridge with the card as a port.
        *arp_rules(identity, _frame(ARP, header=True, tagged=True), on_link, shift=TAG_BITS),
        *_packet_rules(context, on_link, header=True, tagged=True),
        *envelope_rules(),
        last,
    )


def _packet_rules(
    context: RenderContext, on_link: OnLink | None, *, header: bool, tagged: bool = False
) -> tuple[Rule, ...]:
    ipv4 = _frame(ETHERTYPE_IPV4, header=header, tagged=tagged)
    ipv6 = _frame(ETHERTYPE_IPV6, header=header, tagged=tagged)
    tunnel = "the tunnel's addresses are never on a wire"

    def let_out(permit: Permit, frame: str) -> Rule:
        return accept(permit, f"{frame} {render_match(permit.match, context)}")

    return (
        Rule(text=f"{ipv4} ip saddr {names.TUN_IPV4_SUBNET} drop", comment=tunnel),
        Rule(text=f"{ipv6} ip6 saddr {names.TUN_IPV6_SUBNET} drop", comment=tunnel),
        *(let_out(permits.CORE, {4: ipv4, 6: ipv6}[version]) for version in permits.CORE.match.address_versions),
        *discovery_rules(context.identity, on_link, ipv6=ipv6, header=context.header, targets=True),
        # dhclient and udhcpc send from a packet socket, whose owner is root.
        let_out(permits.DHCP, ipv4),
        let_out(permits.DHCPV6, ipv6),
    )


def build_egress_guard(
    identity: Identity,
    devices: tuple[InterfaceName, ...],
    dhcp_servers: tuple[Address, ...] = (),
    *,
    headerless: tuple[InterfaceName, ...] = (),
    on_link: OnLink = NOTHING,
) -> Table | None:
    """The egress guard of the devices that lead out: frames that no inet hook ever sees (AF_PACKET, bridges, macvlan).

    A frame's protocol is checked twice, in the socket buffer and in the frame: the sender of a raw frame chooses both,
    and they may differ (packet(7)). Accepted frames are marked (`names.ACCEPTED_BIT`).

    Args:
        identity: who may use the wire.
        devices: names of existing interfaces; nft refuses a chain on one that does not exist.
        dhcp_servers: on-link gateways.
        headerless: those of the devices whose frames have no Ethernet header (PPP, WWAN, tunnels).
        on_link: our own addresses on the links, and the neighbours that the kernel may talk to there.

    Returns:
        The table; None if there is no device to guard.
    """
    if not devices:
        return None
    without = {name for name in devices if name in headerless}
    kinds = tuple(kind for kind in (True, False) if any((name not in without) is kind for name in devices))
    return Table(
        family="netdev",
        name=names.EGRESS_TABLE,
        chains=(*_frame_chains(identity, dhcp_servers, on_link, kinds), *_device_chains(devices, headerless)),
        heading="Psiphon egress guard: raw frames too.",
    ).mark_accepted(names.ACCEPTED_BIT)


def build_frame_guard(
    identity: Identity, devices: tuple[InterfaceName, ...] = (), *, headerless: tuple[InterfaceName, ...] = ()
) -> Table:
    """The egress guard's twin for devices known beforehand, held like the wire guard (`flags owner`).

    The daemon's egress guard follows devices as they appear, but is missing before the daemon starts, and between a
    flush and its repair. The frame guard is loaded at boot, and no other program can flush it. It knows neither
    gateways nor addresses: a DHCP renewal by unicast goes to private ranges only, and for neighbour discovery, MLD and
    ARP it enforces only form and length. Accepted frames are marked, as by the egress guard.

    Args:
        identity: who may use the wire.
        devices: names of the interfaces that lead out; since Linux 6.16 they need not exist yet. The holder's script
            adds those that exist at its start in the same way (`system/units.py`).
        headerless: those of them whose frames have no Ethernet header.
    """
    return Table(
        family="netdev",
        name=names.FRAME_TABLE,
        flags="owner",
        chains=(*_frame_chains(identity, (), None, (True, False)), *_device_chains(devices, headerless)),
        heading="Psiphon frame guard: owned by the process that loaded it, for the interfaces that were known.",
    ).mark_accepted(names.ACCEPTED_BIT)


def _frame_chains(
    identity: Identity, dhcp_servers: tuple[Address, ...], on_link: OnLink | None, kinds: tuple[bool, ...]
) -> tuple[Chain, ...]:
    """The rules for what may leave, shared by all devices of a kind."""
    return (
        *(build_carried_chains(identity, dhcp_servers, on_link) if True in kinds else ()),
        *(
            Chain(name=_name_frames(header=header), rules=_egress_rules(identity, dhcp_servers, on_link, header=header))
            for header in kinds
        ),
    )


def _name_frames(*, header: bool) -> str:
    return names.FRAMES_CHAIN if header else names.HEADERLESS_CHAIN


def _device_chains(devices: tuple[InterfaceName, ...], headerless: tuple[InterfaceName, ...]) -> tuple[Chain, ...]:
    """The hook of each device, in a chain of its own.

    A chain takes 256 devices (NFT_NETDEVICE_MAX), and one device that the kernel refuses would cost all others their
    guard.
    """
    return tuple(
        Chain(
            name=f"{names.DEVICE_CHAIN_PREFIX}{device}",
            hook=Hook(kind="filter", hook="egress", priority=0, policy="drop", devices=(InterfaceName(device),)),
            rules=(Rule(text=f"goto {_name_frames(header=device not in headerless)}"),),
        )
        for device in devices
    )


def build_bridge_guard(identity: Identity) -> Table:
    """What leaves through a bridge port: to a guest everything, elsewhere what the frame guard lets out of a card.

    It checks each frame by the kind of its port, after every other decision (postrouting of the family `bridge`). So a
    port that joins later is covered from its first frame on, with no gap until somebody notices it. A bridge that
    carries the uplink keeps working: the core's frames pass as on a card.

    The kind does not say where the other end of a pair leads: to another bridge, whose ports are checked too; to a
    card, which has its own guards; or to another network namespace, which no table here sees.
    """
    kinds = ", ".join(f'"{kind}"' for kind in GUEST_KINDS)
    return Table(
        family="bridge",
        name=names.BRIDGE_TABLE,
        flags="owner",
        chains=(
            *_frame_chains(identity, (), None, (True,)),
            Chain(
                name="ports",
                hook=Hook(kind="filter", hook="postrouting", priority=300, policy="drop"),
                rules=(
                    accept(permits.GUESTS, f"meta oifkind {{ {kinds} }}", "a port that leads to a guest"),
                    Rule(text=f"goto {_name_frames(header=True)}", comment="any other port is a card"),
                ),
            ),
        ),
        heading="Psiphon bridge guard: owned by the process that loaded it, for every bridge, whatever joins it.",
    )


def render_bridge_rules(identity: Identity, bridges: tuple[InterfaceName, ...]) -> str:
    """What the holder loads last: the wire guard that knows allowed bridges, and the bridge guard, in one transaction.

    A kernel that refuses one of them gets neither, and keeps the wire guard that knows no bridges.
    """
    if not bridges:
        return "# No bridge is allowed: 'psiphon-vpn bridge allow NAME'.\n"
    tables = (build_bridge_guard(identity), build_wire_guard(identity, bridges=bridges))
    return "".join(table.render_replacement() for table in tables)


def build_arp_table() -> Table:
    """What ARP needs beside the routing wall, the same in every state. Its chains guard the tunnel's address only.

    The kernel answers an ARP request only if its sender passes the reverse-path check (arp.c, arp_process). With
    rp_filter=1 that check would find the TUN and fail, and the gateway would lose this machine as soon as its ARP entry
    expired. So arriving ARP packets get the same mark as IP packets from a wire (policy/routing.py). No inet hook sees
    ARP packets, hence the separate table.
    """
    tunnel = names.TUN_IPV4_SUBNET
    return Table(
        family="arp",
        name=names.ARP_TABLE,
        chains=(
            Chain(
                name="input",
                hook=Hook(kind="filter", hook="input", priority=0, policy="accept"),
                rules=(
                    Rule(text=f"arp daddr ip {tunnel} drop", comment="nobody learns who has the tunnel's address"),
                    Rule(
                        text=f"meta mark set {names.CORE_MARK}",
                        comment="reverse-path check of what arrives on a wire: against the main table",
                    ),
                ),
            ),
            Chain(
                name="output",
                hook=Hook(kind="filter", hook="output", priority=0, policy="accept"),
                rules=(
                    Rule(text=f"arp saddr ip {tunnel} drop", comment="the tunnel's address is never on a wire"),
                    Rule(text=f"arp daddr ip {tunnel} drop", comment="the tunnel's address is never on a wire"),
                ),
            ),
        ),
        heading="Psiphon: ARP beside the routing wall.",
    )
