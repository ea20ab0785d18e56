# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Decides which captured frames are innocent. Pure: takes a frame and the evidence, returns a verdict.

These frames are innocent, each in exactly one form and length: ARP for an on-link neighbour, EAPOL, neighbour
discovery, MLD reports of solicited-node groups, DHCP, and the flows that the tunnel server itself has recorded.
Everything else is a leak, including what cannot be parsed.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from psiphon_lab import addresses as plan
from psiphon_lab.frames import Decoded, Frame, decode_packet, describe_frame

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

EAPOL, ARP, IPV4, IPV6 = 0x888E, 0x0806, 0x0800, 0x86DD
ROUTER_SOLICITATION, NEIGHBOUR_SOLICITATION, NEIGHBOUR_ADVERTISEMENT, MLD_REPORT = 133, 135, 136, 131
DHCP4_SERVER, DHCP4_CLIENT, DHCP6_CLIENT, DHCP6_SERVER = 67, 68, 546, 547
DHCP4_COOKIE = b"\x63\x82\x53\x63"
DHCP6_CLIENT_MESSAGES = (1, 3, 4, 5, 6, 8, 9, 11)  # RFC 8415, 7.3: those that clients send
EVERYONE = "255.255.255.255"
ALL_DHCP6 = "ff02::1:2"
ALL_ROUTERS = "ff02::2"
ALL_NODES = "ff02::1"
UNSPECIFIED = "0.0.0.0"  # noqa: S104 - compared with, never bound to
SOLICITED_NODE = ipaddress.ip_network("ff02::1:ff00:0/104")
# Hop-by-hop header of eight bytes: next header ICMPv6, length 0, router alert (type 5, length 2, MLD), PadN.
ROUTER_ALERT = b"\x3a\0\x05\x02\0\0\x01\0"
# RFC 4861 4.6: type and length in units of eight bytes. Nonce: RFC 3971 5.3.2, in RFC 7527's detection.
SOURCE_OPTION, TARGET_OPTION, NONCE_OPTION = b"\x01\x01", b"\x02\x01", b"\x0e\x01"
MINIMUM_FRAME = 60
"""bytes, without the checksum (IEEE 802.3). Shorter frames are padded."""


_SERVERS = frozenset({(plan.SERVER4, plan.SERVER_PORT), (plan.SERVER6, plan.SERVER_PORT)})


@dataclass(frozen=True, kw_only=True)
class Flow:
    """A flow, identified by its ends as the server saw them. protocol: the IP protocol number."""

    protocol: int
    client: str
    client_port: int
    server: str
    server_port: int


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the judge relies on.

    Attributes:
        on_link: the client's subnets on each wire.
        flows: the server's own record.
        tunnel: the tunnel's networks. No frame on a wire may contain an address in them.
        core_ports: source ports that only the core can have on this machine. A connection from them to a server is
            innocent even if the server could not record it, because core or server was ended meanwhile, or because a
            censor was between them. Empty: no such connection is innocent.
        servers: address and port of the servers that the core knows.
    """

    on_link: Mapping[str, tuple[Network, ...]]
    flows: frozenset[Flow] = frozenset()
    tunnel: tuple[Network, ...] = field(
        default=tuple(ipaddress.ip_network(text) for text in plan.TUNNEL_NETWORKS),
    )
    core_ports: range = range(0)
    servers: frozenset[tuple[str, int]] = _SERVERS


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The verdict on one frame. innocent: why it is innocent, or None for a leak. text: the frame in words."""

    frame: Frame
    innocent: str | None
    text: str

    @property
    def is_leak(self) -> bool:
        """True unless the frame is innocent."""
        return self.innocent is None


def world_evidence(
    flows: Iterable[Flow] = (),
    *,
    core_ports: range = range(0),
    claimed: Iterable[str] = (),
    servers: Iterable[tuple[str, int]] = _SERVERS,
) -> Evidence:
    """The evidence for the addresses of `world.World`, with the server's record.

    claimed: further networks that the providers claim are on their links. servers: see `Evidence`.
    """
    more = tuple(ipaddress.ip_network(text) for text in claimed)
    on_link = {
        lan.name: (ipaddress.ip_network(lan.network4), ipaddress.ip_network(lan.network6), *more)
        for lan in (plan.LAN_A, plan.LAN_B)
    }
    return Evidence(on_link=on_link, flows=frozenset(flows), core_ports=core_ports, servers=frozenset(servers))


def judge_frame(frame: Frame, evidence: Evidence) -> Verdict:
    """Judge one frame from the client."""
    return Verdict(frame=frame, innocent=_find_innocence(frame, evidence), text=describe_frame(frame))


def judge_frames(frames: Iterable[Frame], evidence: Evidence) -> list[Verdict]:
    """Judge the frames that are from the client."""
    return [judge_frame(frame, evidence) for frame in frames if frame.from_client]


def find_leaks(frames: Iterable[Frame], evidence: Evidence) -> list[Verdict]:
    """The verdicts of the frames that are leaks."""
    return [verdict for verdict in judge_frames(frames, evidence) if verdict.is_leak]


def _find_innocence(frame: Frame, evidence: Evidence) -> str | None:
    data = frame.data
    if len(data) < 14:
        return None
    ethertype = int.from_bytes(data[12:14], "big")
    if ethertype == EAPOL:
        return "eapol" if _is_eapol(data[14:]) else None
    if ethertype == ARP:
        return "arp" if _is_innocent_arp(data[14:], frame.wire, evidence) else None
    if ethertype not in (IPV4, IPV6) or len(data) == 14:
        return None
    packet = decode_packet(data[14:])
    if packet is None or _has_room(data) or packet.version != (4 if ethertype == IPV4 else 6) or packet.fragment:
        return None
    if _names_tunnel(evidence, packet.source, packet.destination):
        return None
    if _is_recorded(packet, evidence):
        return "tunnel flow"
    if _is_call(packet, evidence):
        return "tunnel call"
    if packet.options:
        return None
    if packet.protocol == 17:
        return _judge_dhcp(packet, frame.wire, evidence)
    if packet.version == 6:
        return _judge_discovery(packet, frame.wire, evidence)
    return None


def _names_tunnel(evidence: Evidence, *texts: str) -> bool:
    values = [ipaddress.ip_address(text) for text in texts]
    return any(value in network for network in evidence.tunnel for value in values if value.version == network.version)


def _is_on_link(address: str, wire: str, evidence: Evidence) -> bool:
    value = ipaddress.ip_address(address)
    networks = evidence.on_link.get(wire, ())
    return any(value in network for network in networks if network.version == value.version)


def _has_room(data: bytes) -> bool:
    """Whether the frame contains more than its packet and the padding of a short frame."""
    head = data[14:]
    size = 14 + (int.from_bytes(head[2:4], "big") if head[0] >> 4 == 4 else 40 + int.from_bytes(head[4:6], "big"))
    return len(data) > size and (len(data) != MINIMUM_FRAME or any(data[size:]))


def _is_eapol(body: bytes) -> bool:
    """IEEE 802.1X-2010 11.3: version, type, length of the body, body."""
    if len(body) < 4 or body[0] not in (1, 2, 3) or body[1] not in (0, 1, 2, 3, 5):
        return False
    size = 4 + int.from_bytes(body[2:4], "big")
    return len(body) >= size and not any(body[size:]) and len(body) <= max(size, MINIMUM_FRAME - 14)


def _is_innocent_arp(body: bytes, wire: str, evidence: Evidence) -> bool:
    # RFC 826, Ethernet and IPv4; the rest of the frame may only be padding.
    if len(body) < 28 or body[:6] != b"\0\x01\x08\0\x06\x04" or body[6:8] not in (b"\0\x01", b"\0\x02"):
        return False
    if len(body) not in (28, MINIMUM_FRAME - 14) or any(body[28:]):
        return False
    if body[6:8] == b"\0\x01" and any(body[18:24]):
        return False  # a request does not know the target's hardware address
    sender, target = str(ipaddress.ip_address(body[14:18])), str(ipaddress.ip_address(body[24:28]))
    if _names_tunnel(evidence, sender, target):
        return False
    # A probe for a duplicate address (RFC 5227) has no sender address.
    return _is_on_link(target, wire, evidence) and (sender == UNSPECIFIED or _is_on_link(sender, wire, evidence))


def _is_recorded(packet: Decoded, evidence: Evidence) -> bool:
    if packet.protocol not in (6, 17) or packet.options:
        return False
    flow = Flow(
        protocol=packet.protocol,
        client=packet.source,
        client_port=packet.source_port,
        server=packet.destination,
        server_port=packet.destination_port,
    )
    return flow in evidence.flows


def _is_call(packet: Decoded, evidence: Evidence) -> bool:
    """Whether this is from a connection of the core to one of its servers that the server could not record.

    It may be UDP, for QUIC.
    """
    return (
        packet.protocol in (6, 17)
        and not packet.options
        and packet.source_port in evidence.core_ports
        and (packet.destination, packet.destination_port) in evidence.servers
    )


def _judge_dhcp(packet: Decoded, wire: str, evidence: Evidence) -> str | None:
    ports, message = (packet.source_port, packet.destination_port), packet.payload[8:]
    if packet.version == 4 and ports == (DHCP4_CLIENT, DHCP4_SERVER):
        # A request (RFC 2131): operation 1, and the cookie after the fixed fields.
        if len(message) < 240 or message[0] != 1 or message[236:240] != DHCP4_COOKIE:
            return None
        # To everyone, or the unicast renewal (4.4.5) to the server on this link.
        local = packet.destination == EVERYONE or _is_on_link(packet.destination, wire, evidence)
        return "dhcp" if local else None
    if packet.version == 6 and ports == (DHCP6_CLIENT, DHCP6_SERVER) and _is_link_local(packet.source):
        if len(message) < 4 or message[0] not in DHCP6_CLIENT_MESSAGES:
            return None
        return "dhcpv6" if packet.destination == ALL_DHCP6 or _is_link_local(packet.destination) else None
    return None


def _is_link_local(address: str) -> bool:
    return ipaddress.ip_address(address).is_link_local


def _judge_discovery(packet: Decoded, wire: str, evidence: Evidence) -> str | None:
    payload = packet.payload
    if packet.protocol == 0:
        return "mld" if _is_mld_report(packet) else None
    if packet.protocol != 58 or len(payload) < 8 or payload[1] != 0 or packet.hop_limit != 255:
        return None
    if not _is_local_source(packet.source, wire, evidence):
        return None
    kind = payload[0]
    if kind == ROUTER_SOLICITATION:
        formed = not any(payload[4:8]) and _has_options(payload[8:], SOURCE_OPTION)
        return "nd" if formed and packet.destination == ALL_ROUTERS else None
    if kind not in (NEIGHBOUR_SOLICITATION, NEIGHBOUR_ADVERTISEMENT) or len(payload) < 24:
        return None
    asking = kind == NEIGHBOUR_SOLICITATION
    reserved = payload[4:8] if asking else bytes([payload[4] & 0x1F]) + payload[5:8]
    options = (SOURCE_OPTION, NONCE_OPTION) if asking else (TARGET_OPTION,)
    if any(reserved) or not _has_options(payload[24:], *options):
        return None
    target = str(ipaddress.ip_address(payload[8:24]))
    neighbour = _is_link_local(target) or _is_on_link(target, wire, evidence)
    if _names_tunnel(evidence, target) or not neighbour:
        return None
    return "nd" if _is_local_destination(packet.destination, wire, evidence) else None


def _has_options(rest: bytes, *allowed: bytes) -> bool:
    """Whether there are no options, or only one of these, eight bytes long."""
    return not rest or (len(rest) == 8 and rest[:2] in allowed)


def _is_local_destination(address: str, wire: str, evidence: Evidence) -> bool:
    solicited = ipaddress.ip_address(address) in SOLICITED_NODE
    return solicited or address == ALL_NODES or _is_link_local(address) or _is_on_link(address, wire, evidence)


def _is_local_source(address: str, wire: str, evidence: Evidence) -> bool:
    return address == "::" or _is_link_local(address) or _is_on_link(address, wire, evidence)


def _is_mld_report(packet: Decoded) -> bool:
    """An MLDv1 report (RFC 2710) of a solicited-node group: hop limit 1, router alert, sent to the group it reports.

    The source is a link-local address or unspecified. A version 2 report (RFC 3810) can contain any groups and sources
    that a user joined, and no link needs that.
    """
    payload = packet.payload
    if packet.hop_limit != 1 or len(payload) != 32 or payload[:8] != ROUTER_ALERT:
        return False
    if packet.source != "::" and not _is_link_local(packet.source):
        return False
    group = ipaddress.ip_address(payload[16:32])
    formed = payload[8:10] == bytes([MLD_REPORT, 0]) and not any(payload[12:16])
    return formed and group in SOLICITED_NODE and str(group) == packet.destination
