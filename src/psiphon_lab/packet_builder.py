# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds packets and frames that no socket would make, with correct checksums, using Scapy.

Scapy only builds; sockets of the laboratory send. Its import takes 0.3 s, so it happens with the first packet, or with
`load`. Every address is given, so Scapy never looks up a route or an interface.
"""

from __future__ import annotations

import functools
import ipaddress
import os
from types import SimpleNamespace
from typing import Any

ETHERTYPE_IPV4, ETHERTYPE_IPV6 = 0x0800, 0x86DD
TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58
SYN, RST, ACK = 2, 4, 16
BROADCAST_MAC = "ff:ff:ff:ff:ff:ff"
_FOLDERS = ("XDG_CACHE_HOME", "XDG_CONFIG_HOME")


@functools.cache
def load() -> SimpleNamespace:
    """Scapy's classes by name. A process that forks should call this before."""
    # Scapy keeps pickled tables in the user's home directory and executes what it finds there. So it gets none.
    before = {name: os.environ.get(name) for name in _FOLDERS}
    os.environ.update(dict.fromkeys(_FOLDERS, os.devnull))
    try:
        from scapy.layers import inet, inet6, l2
        from scapy.packet import Raw
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    return SimpleNamespace(inet=inet, inet6=inet6, l2=l2, Raw=Raw)


def pack_address(text: str) -> bytes:
    """An address in binary form."""
    return ipaddress.ip_address(text).packed


def _ip(source: str, target: str, protocol: int, *, hop_limit: int = 64) -> Any:
    if ":" in source:
        return load().inet6.IPv6(src=source, dst=target, nh=protocol, hlim=hop_limit)
    return load().inet.IP(src=source, dst=target, proto=protocol, ttl=hop_limit)


# Cached, because a shot builds the same packet in every round.
@functools.lru_cache
def ip_packet(source: str, target: str, protocol: int, payload: bytes, *, hop_limit: int = 64) -> bytes:
    """An IPv4 or IPv6 packet, depending on its addresses."""
    return bytes(_ip(source, target, protocol, hop_limit=hop_limit) / load().Raw(payload))


@functools.lru_cache
def udp_packet(source: str, target: str, ports: tuple[int, int], data: bytes) -> bytes:
    """A UDP packet. ports: source and destination."""
    body = load().inet.UDP(sport=ports[0], dport=ports[1]) / load().Raw(data)
    return bytes(_ip(source, target, UDP) / body)


@functools.lru_cache
def tcp_packet(
    source: str, target: str, ports: tuple[int, int], flags: int, *, data: bytes = b"", ack: int = 0
) -> bytes:
    """A TCP segment. ports: source and destination; flags: SYN, RST, ACK."""
    head = load().inet.TCP(sport=ports[0], dport=ports[1], seq=1000, ack=ack, flags=flags, window=65535)
    return bytes(_ip(source, target, TCP) / head / load().Raw(data))


@functools.lru_cache
def icmp_packet(source: str, target: str, kind: int, rest: bytes, *, code: int = 0, hop_limit: int = 64) -> bytes:
    """An ICMP or ICMPv6 message, depending on its addresses. rest: what follows the checksum."""
    if ":" in source:
        message = load().inet6.ICMPv6Unknown(type=kind, code=code, msgbody=rest)
        return bytes(_ip(source, target, ICMPV6, hop_limit=hop_limit) / message)
    # The first four bytes of `rest` belong to the header, with a different meaning in each type. So Scapy parses the
    # message and computes the checksum again.
    message = load().inet.ICMP(bytes([kind, code, 0, 0]) + rest)
    del message.chksum
    return bytes(_ip(source, target, ICMP, hop_limit=hop_limit) / message)


def frame(target_mac: str, source_mac: str, ethertype: int, payload: bytes) -> bytes:
    """An Ethernet frame."""
    return bytes(load().l2.Ether(dst=target_mac, src=source_mac, type=ethertype) / load().Raw(payload))


@functools.lru_cache
def ip_frame(target_mac: str, source_mac: str, packet: bytes) -> bytes:
    """An Ethernet frame around an IP packet."""
    return frame(target_mac, source_mac, ETHERTYPE_IPV6 if packet[0] >> 4 == 6 else ETHERTYPE_IPV4, packet)


def arp_request(source_mac: str, sender: str, target: str) -> bytes:
    """A broadcast ARP request for an address."""
    l2 = load().l2
    question = l2.ARP(op="who-has", hwsrc=source_mac, psrc=sender, hwdst="00:00:00:00:00:00", pdst=target)
    return bytes(l2.Ether(dst=BROADCAST_MAC, src=source_mac) / question)


def solicitation(source_mac: str, source: str, target: str) -> bytes:
    """A neighbour solicitation (RFC 4861) to the target's solicited-node group."""
    tail = pack_address(target)[13:]
    group = str(ipaddress.ip_address(b"\xff\x02" + bytes(9) + b"\x01\xff" + tail))
    v6 = load().inet6
    question = v6.ICMPv6ND_NS(tgt=target) / v6.ICMPv6NDOptSrcLLAddr(lladdr=source_mac)
    mac = "33:33:ff:" + tail.hex(":")
    return bytes(load().l2.Ether(dst=mac, src=source_mac) / _ip(source, group, ICMPV6, hop_limit=255) / question)
