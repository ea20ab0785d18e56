# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The stand-in tunnel's handling of packets."""

from __future__ import annotations

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psiphon_lab import tunnel_packet as ip

V4A, V4B = ipaddress.ip_address("192.0.2.7").packed, ipaddress.ip_address("203.0.113.9").packed
V6A, V6B = ipaddress.ip_address("2001:db8::7").packed, ipaddress.ip_address("2001:db8:1::9").packed


def sum16(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def transport_sum(source: bytes, destination: bytes, protocol: int, body: bytes) -> int:
    return sum16(source + destination + struct.pack("!II", len(body), protocol) + body)


def make_packet(
    source: bytes, destination: bytes, protocol: int, ports: tuple[int, int], payload: bytes = b""
) -> bytes:
    """A whole packet with correct checksums, computed independently."""
    if protocol == ip.TCP:
        body = struct.pack("!HHIIBBHHH", *ports, 1, 0, 0x50, 2, 1000, 0, 0) + payload
        at = 16
    else:
        body = struct.pack("!HHHH", *ports, 8 + len(payload), 0) + payload
        at = 6
    checksum = transport_sum(source, destination, protocol, body)
    if protocol == ip.UDP and checksum == 0:
        checksum = 0xFFFF
    body = body[:at] + struct.pack("!H", checksum) + body[at + 2 :]
    if len(source) == 4:
        header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(body), 1, 0, 64, protocol, 0, source, destination)
        header = header[:10] + struct.pack("!H", sum16(header)) + header[12:]
    else:
        header = struct.pack("!IHBB16s16s", 6 << 28, len(body), protocol, 64, source, destination)
    return header + body


def is_sound(data: bytes) -> bool:
    """Whether every checksum of a packet is correct."""
    header = ip.read_header(data)
    assert not isinstance(header, str)
    body = data[header.transport :]
    right = transport_sum(header.source, header.destination, header.protocol, body) == 0
    return right and (header.version == 6 or sum16(data[:20]) == 0)


addresses4 = st.binary(min_size=4, max_size=4).filter(ip.is_global_unicast)
addresses6 = st.binary(min_size=16, max_size=16).filter(ip.is_global_unicast)
pairs = st.one_of(st.tuples(addresses4, addresses4, addresses4), st.tuples(addresses6, addresses6, addresses6))


@given(
    pairs,
    st.sampled_from([ip.TCP, ip.UDP]),
    st.tuples(st.integers(1, 65535), st.integers(1, 65535)),
    st.binary(max_size=64),
    st.booleans(),
)
def test_a_rewritten_address_leaves_both_checksums_right(
    addresses: tuple[bytes, bytes, bytes], protocol: int, ports: tuple[int, int], payload: bytes, source: bool
) -> None:
    original = make_packet(addresses[0], addresses[1], protocol, ports, payload)
    header = ip.read_header(original)
    assert not isinstance(header, str)
    changed = bytearray(original)
    ip.rewrite_address(changed, header, new=addresses[2], source=source)
    assert is_sound(bytes(changed))
    after = ip.read_header(bytes(changed))
    assert not isinstance(after, str)
    assert (after.source if source else after.destination) == addresses[2]


def test_a_udp_packet_without_checksum_stays_without() -> None:
    data = bytearray(make_packet(V4A, V4B, ip.UDP, (1000, 53), b"x"))
    data[26:28] = b"\0\0"
    header = ip.read_header(bytes(data))
    assert not isinstance(header, str)
    ip.rewrite_address(data, header, new=V4A, source=False)
    assert data[26:28] == b"\0\0"


GOOD4 = make_packet(V4A, V4B, ip.TCP, (1000, 80))
GOOD6 = make_packet(V6A, V6B, ip.UDP, (1000, 80), b"x")


@pytest.mark.parametrize(
    ("reason", "data"),
    [
        ("short", b""),
        ("short", GOOD4[:39]),
        ("short", GOOD6[:30]),
        ("version", b"\x55" + GOOD4[1:]),
        ("options", b"\x46" + GOOD4[1:]),
        ("protocol", GOOD4[:9] + b"\x01" + GOOD4[10:]),
        ("protocol", GOOD6[:6] + b"\x2c" + GOOD6[7:]),
        ("port", make_packet(V4A, V4B, ip.UDP, (0, 80))),
        ("port", make_packet(V6A, V6B, ip.UDP, (80, 0))),
        *[
            ("destination", make_packet(V4A, ipaddress.ip_address(text).packed, ip.UDP, (1, 1)))
            for text in ("127.0.0.1", "224.0.0.251", "169.254.1.1", "255.255.255.255", "0.0.0.0")
        ],
        *[
            ("destination", make_packet(V6A, ipaddress.ip_address(text).packed, ip.UDP, (1, 1)))
            for text in ("::1", "::", "ff02::fb", "fe80::1")
        ],
    ],
)
def test_the_tunnel_drops_what_the_real_one_drops(reason: str, data: bytes) -> None:
    assert ip.read_header(data) == reason


@pytest.mark.parametrize("text", ["10.1.2.3", "192.168.0.1", "203.0.113.9", "fd00::1", "2001:db8::1"])
def test_private_and_documentation_destinations_pass_the_client(text: str) -> None:
    destination = ipaddress.ip_address(text).packed
    source = V4A if len(destination) == 4 else V6A
    assert not isinstance(ip.read_header(make_packet(source, destination, ip.UDP, (1, 1))), str)


@given(st.binary(max_size=120))
def test_no_bytes_make_the_reader_fail(data: bytes) -> None:
    ip.read_header(data)
    ip.rewrite_query(data, V4A, V6A)
    ip.rewrite_response(data, V4A, V6A)


def test_transparent_dns_is_rewritten_to_the_tunnels_resolver_and_back() -> None:
    resolver = ipaddress.ip_address("10.200.3.2").packed
    query = make_packet(V4A, resolver, ip.UDP, (1000, 53), b"q")
    up = ip.rewrite_query(query, resolver, None)
    assert up is not None
    assert up[16:20] == ip.TUNNEL_DNS4
    assert is_sound(up)
    reply = make_packet(ip.TUNNEL_DNS4, V4A, ip.UDP, (53, 1000), b"r")
    down = ip.rewrite_response(reply, resolver, None)
    assert down is not None
    assert down[12:16] == resolver
    assert is_sound(down)


def test_other_ports_of_the_resolver_are_not_rewritten() -> None:
    resolver = ipaddress.ip_address("10.200.3.2").packed
    data = make_packet(V4A, resolver, ip.TCP, (1000, 853))
    assert ip.rewrite_query(data, resolver, None) == data


@given(st.lists(st.binary(max_size=200), max_size=10), st.integers(1, 50))
def test_frames_come_out_of_a_stream_as_they_went_in_however_it_is_cut(packets: list[bytes], size: int) -> None:
    stream = b"".join(map(ip.frame_packet, packets))
    buffer, out = bytearray(), []
    for at in range(0, len(stream), size):
        buffer += stream[at : at + size]
        out += ip.split_frames(buffer)
    assert out == packets
    assert not buffer
