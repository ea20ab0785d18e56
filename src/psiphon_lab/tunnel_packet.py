# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""IP packets in the stand-in tunnel: which ones it drops, and how it rewrites addresses. Pure, standard library only.

The rules are those of the real tunnel: no IP options, no extension headers, TCP and UDP only, no port 0, and only
destinations that Go calls global unicast (which includes RFC 1918 and unique local addresses).
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

TCP, UDP = 6, 17
DNS_PORT = 53
MTU = 1500

# The addresses of transparent DNS inside the tunnel (the real server's constants).
TUNNEL_DNS4 = ipaddress.ip_address("10.0.0.2").packed
TUNNEL_DNS6 = ipaddress.ip_address("fd19:ca83:e6d5:1c44::2").packed
SERVER_TUN4 = "10.0.0.1/8"
SERVER_TUN6 = "fd19:ca83:e6d5:1c44::1/64"

_BOGONS = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
        "224.0.0.0/4", "240.0.0.0/4", "fc00::/7", "fe80::/10", "2001::/23", "2001:db8::/32", "2002::/16", "ff00::/8",
    )
)  # fmt: skip
_CLIENTS = (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd19:ca83:e6d5:1c44::/64"))


@dataclass(frozen=True, slots=True)
class Header:
    """Header fields of an accepted packet. Addresses are in binary form. transport: offset of the TCP or UDP header."""

    version: int
    protocol: int
    source: bytes
    destination: bytes
    source_port: int
    destination_port: int
    transport: int


def read_header(packet: bytes) -> Header | str:
    """The header of a packet that the tunnel carries, or the reason for which it drops the packet."""
    if len(packet) < 20:
        return "short"
    version = packet[0] >> 4
    if version == 4:
        if packet[0] & 15 != 5:
            return "options"
        protocol, transport = packet[9], 20
        source, destination = packet[12:16], packet[16:20]
    elif version == 6:
        if len(packet) < 40:
            return "short"
        protocol, transport = packet[6], 40
        source, destination = packet[8:24], packet[24:40]
    else:
        return "version"
    if protocol not in (TCP, UDP):
        return "protocol"
    if len(packet) < transport + (20 if protocol == TCP else 8):
        return "short"
    source_port = int.from_bytes(packet[transport : transport + 2], "big")
    destination_port = int.from_bytes(packet[transport + 2 : transport + 4], "big")
    if source_port == 0 or destination_port == 0:
        return "port"
    if not is_global_unicast(destination):
        return "destination"
    return Header(version, protocol, source, destination, source_port, destination_port, transport)


def is_global_unicast(address: bytes) -> bool:
    """Go's net.IP.IsGlobalUnicast: not unspecified, loopback, multicast, link-local or 255.255.255.255."""
    if len(address) == 4:
        return not (
            address in (b"\0\0\0\0", b"\xff\xff\xff\xff")
            or address[0] == 127
            or 224 <= address[0] < 240
            or address[:2] == b"\xa9\xfe"
        )
    return not (
        (address[:15] == bytes(15) and address[15] < 2)
        or address[0] == 0xFF
        or (address[0] == 0xFE and address[1] & 0xC0 == 0x80)
    )


def is_bogon(address: bytes) -> bool:
    """Whether a server that does not allow bogons refuses the destination."""
    value = ipaddress.ip_address(address)
    return any(value in network for network in _BOGONS if network.version == value.version)


def is_client_address(address: bytes) -> bool:
    """Whether the destination is another client of the server, or the server's own end of the tunnel."""
    value = ipaddress.ip_address(address)
    return any(value in network for network in _CLIENTS if network.version == value.version)


def update_checksum(checksum: int, old: bytes, new: bytes) -> int:
    """The checksum after `new` replaced `old` (RFC 1624, equation 3). Both have the same, even length."""
    total = ~checksum & 0xFFFF
    for at in range(0, len(old), 2):
        total += (~((old[at] << 8) | old[at + 1]) & 0xFFFF) + ((new[at] << 8) | new[at + 1])
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def rewrite_address(packet: bytearray, header: Header, *, new: bytes, source: bool) -> None:
    """Replace the source or destination address in place, and update both checksums."""
    if header.version == 4:
        start, end = (12, 16) if source else (16, 20)
    else:
        start, end = (8, 24) if source else (24, 40)
    old = bytes(packet[start:end])
    if old == new:
        return
    packet[start:end] = new
    if header.version == 4:
        _update_checksum_at(packet, 10, old, new)
    if header.protocol == TCP:
        _update_checksum_at(packet, header.transport + 16, old, new)
        return
    at = header.transport + 6
    if packet[at] or packet[at + 1]:  # a UDP checksum of 0 means none (IPv4)
        _update_checksum_at(packet, at, old, new)
        if not packet[at] and not packet[at + 1]:
            packet[at : at + 2] = b"\xff\xff"


def _update_checksum_at(packet: bytearray, at: int, old: bytes, new: bytes) -> None:
    packet[at : at + 2] = update_checksum((packet[at] << 8) | packet[at + 1], old, new).to_bytes(2, "big")


def rewrite_query(packet: bytes, resolver4: bytes | None, resolver6: bytes | None) -> bytes | None:
    """Client to server: the packet, with transparent DNS redirected to the tunnel's resolver; None to drop it."""
    header = read_header(packet)
    if isinstance(header, str):
        return None
    configured, target = (resolver4, TUNNEL_DNS4) if header.version == 4 else (resolver6, TUNNEL_DNS6)
    if header.destination_port != DNS_PORT or configured is None or header.destination != configured:
        return packet
    changed = bytearray(packet)
    rewrite_address(changed, header, new=target, source=False)
    return bytes(changed)


def rewrite_response(packet: bytes, resolver4: bytes | None, resolver6: bytes | None) -> bytes | None:
    """Server to client: reverses `rewrite_query`; None to drop the packet."""
    header = read_header(packet)
    if isinstance(header, str):
        return None
    configured, target = (resolver4, TUNNEL_DNS4) if header.version == 4 else (resolver6, TUNNEL_DNS6)
    if header.source_port != DNS_PORT or configured is None or header.source != target:
        return packet
    changed = bytearray(packet)
    rewrite_address(changed, header, new=configured, source=True)
    return bytes(changed)


def frame_packet(packet: bytes) -> bytes:
    """A packet as it is in the stream: two bytes of length, then the packet."""
    return len(packet).to_bytes(2, "big") + packet


def split_frames(buffer: bytearray) -> list[bytes]:
    """Remove the complete packets from a stream's buffer, and return them."""
    packets: list[bytes] = []
    at = 0
    while len(buffer) - at >= 2:
        length = (buffer[at] << 8) | buffer[at + 1]
        if len(buffer) - at - 2 < length:
            break
        packets.append(bytes(buffer[at + 2 : at + 2 + length]))
        at += 2 + length
    del buffer[:at]
    return packets
