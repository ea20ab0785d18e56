# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Crafted packets: byte for byte as in the RFCs. The expected bytes were written by hand, not by the tested code."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from psiphon_lab import packet_builder
from psiphon_lab.frames import decode_ip

V4 = ("192.0.2.10", "203.0.113.80")
V6 = ("2001:db8:a::10", "2001:db8:ffff::80")
MACS = ("02:00:00:00:00:01", "02:00:00:00:00:02")
ENDS6 = "20010db8000a0000000000000000001020010db8ffff00000000000000000080"
PORTS = (12345, 9)
# RFC 791, RFC 8200, RFC 768, RFC 9293, RFC 792, RFC 4443, RFC 826, RFC 4861.
BYTES: dict[str, tuple[Callable[[], bytes], str]] = {
    "UDP, IPv4, odd length": (
        lambda: packet_builder.udp_packet(*V4, PORTS, b"odd"),
        "4500001f0001000040117c72c000020acb007150" "30390009000bfdd5" "6f6464",
    ),
    "UDP, IPv6": (
        lambda: packet_builder.udp_packet(*V6, PORTS, b"odd"),
        "60000000000b1140" + ENDS6 + "30390009000ba025" "6f6464",
    ),
    "TCP, IPv4": (
        lambda: packet_builder.tcp_packet(*V4, (12345, 80), packet_builder.SYN),
        "450000280001000040067c74c000020acb007150" "30390050000003e8000000005002ffff7d160000",
    ),
    "TCP, IPv6, data": (
        lambda: packet_builder.tcp_packet(*V6, (12345, 80), packet_builder.RST | packet_builder.ACK, data=b"x", ack=7),
        "6000000000150640" + ENDS6 + "30390050000003e8000000075014ffffa74b0000" "78",
    ),
    "echo request, IPv4": (
        lambda: packet_builder.icmp_packet(*V4, 8, b"\0\1\0\1abc"),
        "4500001f0001000040017c82c000020acb007150" "0800339b00010001" "616263",
    ),
    "redirect, IPv4": (
        lambda: packet_builder.icmp_packet(*V4, 5, b"\x0a\0\0\1" + b"E" * 28, code=1, hop_limit=1),
        "45000038000100000101bb69c000020acb007150" "050127340a000001" + "45" * 28,
    ),
    "echo request, IPv6, one hop": (
        lambda: packet_builder.icmp_packet(*V6, 128, b"\0\1\0\1abc", hop_limit=1),
        "60000000000b3a01" + ENDS6 + "80005f4900010001" "616263",
    ),
    "another protocol, IPv4": (
        lambda: packet_builder.ip_packet(*V4, 253, b"token"),
        "450000190001000040fd7b8cc000020acb007150" "746f6b656e",
    ),
    "another protocol, IPv6": (
        lambda: packet_builder.ip_packet(*V6, 47, b"token", hop_limit=7),
        "6000000000052f07" + ENDS6 + "746f6b656e",
    ),
    "TCP's number, and no TCP": (
        lambda: packet_builder.ip_packet(*V4, 6, b"token"),
        "4500001900010000" "40067c83" "c000020acb007150" "746f6b656e",
    ),
    "ARP": (
        lambda: packet_builder.arp_request(MACS[1], V4[0], "192.0.2.1"),
        "ffffffffffff0200000000020806" "0001080006040001020000000002c000020a000000000000c0000201",
    ),
    "neighbour solicitation": (
        lambda: packet_builder.solicitation(MACS[1], V6[0], "2001:db8:a::1"),
        "3333ff00000102000000000286dd" "6000000000203aff20010db8000a00000000000000000010"
        "ff0200000000000000000001ff000001" "87001c050000000020010db8000a00000000000000000001" "0101020000000002",
    ),
    "a frame of any kind": (
        lambda: packet_builder.frame(*MACS, 0x88B5, b"..lk.."),
        "02000000000102000000000288b5" "2e2e6c6b2e2e",
    ),
    "a frame around IPv4": (
        lambda: packet_builder.ip_frame(*MACS, packet_builder.ip_packet(*V4, 253, b"t")),
        "0200000000010200000000020800" "450000150001000040fd7b90c000020acb007150" "74",
    ),
    "a frame around IPv6": (
        lambda: packet_builder.ip_frame(*MACS, packet_builder.ip_packet(*V6, 253, b"t")),
        "02000000000102000000000286dd" "600000000001fd40" + ENDS6 + "74",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BYTES)
def test_what_is_crafted_is_byte_for_byte_what_the_standards_say(name: str) -> None:
    make, wanted = BYTES[name]
    assert make().hex() == wanted


def sum_up(data: bytes) -> int:
    """The sum of RFC 1071, computed the slow way: 0xffff for data that includes its correct checksum."""
    total = sum(int.from_bytes(data[at : at + 2].ljust(2, b"\0")) for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@pytest.mark.parametrize("family", [4, 6])
def test_built_packets_have_right_checksums(family: int) -> None:
    ends = V4 if family == 4 else V6
    for packet, protocol in (
        (packet_builder.udp_packet(*ends, (1, 2), b"odd"), 17),
        (packet_builder.tcp_packet(*ends, (1, 2), packet_builder.SYN), 6),
        (packet_builder.icmp_packet(*ends, 8 if family == 4 else 128, b"\0\1\0\1abc"), 1 if family == 4 else 58),
    ):
        decoded = decode_ip(packet_builder.ip_frame(*MACS, packet))
        assert decoded is not None
        assert decoded.protocol == protocol
        pseudo = (
            b""
            if protocol == 1
            else b"".join(map(packet_builder.pack_address, ends))
            + bytes([0, protocol, *len(decoded.payload).to_bytes(2, "big")])
        )
        assert sum_up(pseudo + decoded.payload) == 0xFFFF


ASK = """
import sys
from psiphon_lab.attacks import load_attacks
load_attacks()
print("scapy" in sys.modules)
from psiphon_lab import packet_builder
packet_builder.load()
print("scapy" in sys.modules, "scapy.all" in sys.modules)
"""


def test_scapy_comes_only_when_packets_are_built_and_has_no_home(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", ASK],
        env={**os.environ, "HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["False", "True", "False"]
    assert done.stderr == ""
    assert not list(tmp_path.iterdir())
