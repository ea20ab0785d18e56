# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A captured frame, and its description in words. Pure. A malformed frame is described as malformed."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

import dpkt

ETHERTYPE_NAMES = {0x8100: "VLAN", 0x88A8: "VLAN", 0x888E: "EAPOL", 0x8863: "PPPoE", 0x8864: "PPPoE", 0x88CC: "LLDP"}
PROTOCOL_NAMES = {
    1: "ICMP", 2: "IGMP", 4: "IPIP", 6: "TCP", 17: "UDP", 41: "6in4", 47: "GRE", 50: "ESP", 51: "AH", 58: "ICMPv6",
    132: "SCTP", 136: "UDP-Lite",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One Ethernet frame on one wire.

    time: the kernel's receive stamp, seconds since the epoch. wire: the name of the cable. data: from the
    destination address on, with VLAN tags. from_client: whether the machine under test sent it.
    """

    time: float
    wire: str
    data: bytes
    from_client: bool


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """The parts of an IP packet that the laboratory reads. Ports are 0 if the protocol has none."""

    version: int
    source: str
    destination: str
    protocol: int
    hop_limit: int
    source_port: int
    destination_port: int
    payload: bytes
    fragment: bool
    options: bool


def decode_ip(data: bytes) -> Decoded | None:
    """The IP packet in an Ethernet frame; None if there is none, if it is malformed, or behind a VLAN tag."""
    if len(data) < 34 or data[12:14] not in (b"\x08\x00", b"\x86\xdd"):
        return None
    return decode_packet(data[14:])


def decode_packet(packet: bytes) -> Decoded | None:
    """Read an IP packet; None if it is malformed. An IPv6 extension header is reported as the protocol."""
    version = packet[0] >> 4
    if version == 4 and len(packet) >= 20:
        header = (packet[0] & 15) * 4
        total = int.from_bytes(packet[2:4], "big")
        if header < 20 or total < header or len(packet) < total:
            return None
        flags = int.from_bytes(packet[6:8], "big")
        protocol, hop_limit = packet[9], packet[8]
        source, destination = packet[12:16], packet[16:20]
        fragment, options = bool(flags & 0x3FFF), header > 20
        payload = packet[header:total]
        first = not flags & 0x1FFF
    elif version == 6 and len(packet) >= 40:
        total = 40 + int.from_bytes(packet[4:6], "big")
        if len(packet) < total:
            return None
        protocol, hop_limit = packet[6], packet[7]
        source, destination = packet[8:24], packet[24:40]
        fragment, options, first = protocol == 44, False, True
        payload = packet[40:total]
    else:
        return None
    ports = (0, 0)
    if protocol in (6, 17, 33, 132, 136) and first and len(payload) >= 4:
        ports = (int.from_bytes(payload[:2], "big"), int.from_bytes(payload[2:4], "big"))
    return Decoded(
        version=version,
        source=str(ipaddress.ip_address(source)),
        destination=str(ipaddress.ip_address(destination)),
        protocol=protocol,
        hop_limit=hop_limit,
        source_port=ports[0],
        destination_port=ports[1],
        payload=payload,
        fragment=fragment,
        options=options,
    )


def _describe_dns(payload: bytes) -> str:
    try:
        name = dpkt.dns.DNS(payload).qd[0].name
    except Exception:  # noqa: BLE001 - not DNS after all
        return ""
    return f" asking for {name}"


def _describe_packet(packet: Decoded) -> str:
    name = PROTOCOL_NAMES.get(packet.protocol, f"IP protocol {packet.protocol}")
    if not packet.source_port and not packet.destination_port:
        what = f"{packet.source} > {packet.destination}"
        if packet.protocol in (1, 58) and len(packet.payload) >= 2:
            what += f" type {packet.payload[0]} code {packet.payload[1]}"
        return f"{name} {what} hop limit {packet.hop_limit}"
    text = f"{name} {packet.source}:{packet.source_port} > {packet.destination}:{packet.destination_port}"
    if packet.version == 6:
        text = f"{name} [{packet.source}]:{packet.source_port} > [{packet.destination}]:{packet.destination_port}"
    if packet.protocol == 6 and len(packet.payload) >= 14:
        flags = packet.payload[13]
        names = [word for bit, word in ((2, "SYN"), (16, "ACK"), (1, "FIN"), (4, "RST")) if flags & bit]
        text += f" {'+'.join(names)}"
    if packet.protocol == 17 and packet.destination_port in (53, 5353, 5355):
        text += _describe_dns(packet.payload[8:])
    return text


def describe_frame(frame: Frame) -> str:
    """One line: what the frame is, its source, its destination."""
    data = frame.data
    if len(data) < 14:
        return f"malformed frame of {len(data)} bytes"
    ethertype = int.from_bytes(data[12:14], "big")
    if ethertype in (0x0800, 0x86DD):
        packet = decode_ip(data)
        if packet is not None:
            return _describe_packet(packet)
        return f"malformed {'IPv4' if ethertype == 0x0800 else 'IPv6'} packet of {len(data) - 14} bytes"
    if ethertype == 0x0806 and len(data) >= 42:
        word = {1: "asks for", 2: "answers"}.get(int.from_bytes(data[20:22], "big"), "operation unknown,")
        sender, target = (str(ipaddress.ip_address(data[at : at + 4])) for at in (28, 38))
        return f"ARP {sender} {word} {target}"
    mac = ":".join(f"{byte:02x}" for byte in data[:6])
    return f"{ETHERTYPE_NAMES.get(ethertype, 'frame')} (type {ethertype:#06x}) of {len(data)} bytes to {mac}"
