"""Packets and frames that no socket would make: built by hand, with right checksums. Pure.

Sources: RFC 791, RFC 8200, RFC 768, RFC 9293, RFC 792, RFC 4443, RFC 826.
"""

from __future__ import annotations

import ipaddress
import struct

ETHERTYPE_IPV4, ETHERTYPE_ARP, ETHERTYPE_IPV6 = 0x0800, 0x0806, 0x86DD
TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58
SYN, RST, ACK = 2, 4, 16
BROADCAST_MAC = "ff:ff:ff:ff:ff:ff"


def pack_address(text: str) -> bytes:
    """An address as it stands in a packet."""
    return ipaddress.ip_address(text).packed


def pack_mac(text: str) -> bytes:
    """A MAC address as it stands in a frame."""
    return bytes.fromhex(text.replace(":", ""))


def checksum(data: bytes) -> int:
    """The internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def ip_packet(source: str, target: str, protocol: int, payload: bytes, *, hop_limit: int = 64) -> bytes:
    """An IPv4 or IPv6 packet, by the form of its addresses."""
    packed = pack_address(source), pack_address(target)
    if len(packed[0]) == 16:
        return struct.pack("!IHBB16s16s", 6 << 28, len(payload), protocol, hop_limit, *packed) + payload
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 1, 0, hop_limit, protocol, 0, *packed)
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def _transport_checksum(source: str, target: str, protocol: int, body: bytes) -> int:
    # The pseudo header; both families sum to the same words but for the addresses.
    pseudo = pack_address(source) + pack_address(target) + struct.pack("!IHH", len(body), 0, protocol)
    return checksum(pseudo + body)


def udp_packet(source: str, target: str, ports: tuple[int, int], data: bytes) -> bytes:
    """A UDP packet. ports: source and destination."""
    body = struct.pack("!HHHH", *ports, 8 + len(data), 0) + data
    value = _transport_checksum(source, target, UDP, body) or 0xFFFF
    return ip_packet(source, target, UDP, body[:6] + struct.pack("!H", value) + body[8:])


def tcp_packet(
    source: str, target: str, ports: tuple[int, int], flags: int, *, data: bytes = b"", ack: int = 0
) -> bytes:
    """A TCP segment. ports: source and destination; flags: SYN, RST, ACK."""
    body = struct.pack("!HHIIBBHHH", *ports, 1000, ack, 5 << 4, flags, 65535, 0, 0) + data
    value = _transport_checksum(source, target, TCP, body)
    return ip_packet(source, target, TCP, body[:16] + struct.pack("!H", value) + body[18:])


def icmp_packet(source: str, target: str, kind: int, rest: bytes, *, code: int = 0, hop_limit: int = 64) -> bytes:
    """An ICMP or ICMPv6 message, by the form of its addresses. rest: what follows the checksum."""
    body = bytes([kind, code, 0, 0]) + rest
    if ":" in source:
        value, protocol = _transport_checksum(source, target, ICMPV6, body), ICMPV6
    else:
        value, protocol = checksum(body), ICMP
    return ip_packet(source, target, protocol, body[:2] + struct.pack("!H", value) + body[4:], hop_limit=hop_limit)


def frame(target_mac: str, source_mac: str, ethertype: int, payload: bytes) -> bytes:
    """An Ethernet frame."""
    return pack_mac(target_mac) + pack_mac(source_mac) + struct.pack("!H", ethertype) + payload


def ip_frame(target_mac: str, source_mac: str, packet: bytes) -> bytes:
    """An Ethernet frame around an IP packet."""
    return frame(target_mac, source_mac, ETHERTYPE_IPV6 if packet[0] >> 4 == 6 else ETHERTYPE_IPV4, packet)


def arp_request(source_mac: str, sender: str, target: str) -> bytes:
    """A frame that asks everybody who has an address."""
    body = struct.pack("!HHBBH", 1, ETHERTYPE_IPV4, 6, 4, 1) + pack_mac(source_mac) + pack_address(sender)
    return frame(BROADCAST_MAC, source_mac, ETHERTYPE_ARP, body + bytes(6) + pack_address(target))


def solicitation(source_mac: str, source: str, target: str) -> bytes:
    """A frame with a neighbour solicitation (RFC 4861) to the target's solicited-node group."""
    packed = pack_address(target)
    group = str(ipaddress.ip_address(b"\xff\x02" + bytes(9) + b"\x01\xff" + packed[13:]))
    rest = bytes(4) + packed + b"\x01\x01" + pack_mac(source_mac)
    packet = icmp_packet(source, group, 135, rest, hop_limit=255)
    return frame("33:33:" + ":".join(f"{byte:02x}" for byte in pack_address(group)[12:]), source_mac, 0x86DD, packet)
