# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A helper of connection tracking reads what a program says to a server, and expects the server to call back.

Root attaches one by a rule. Then any page can have a browser say such words (NAT slipstreaming), and the far end of the
tunnel can call any port of this machine, if a rule accepts whatever is `related`.
"""

from __future__ import annotations

import json
import os
import select
import socket
from dataclasses import replace

import pytest
from tests.integration.kernel import Kernel
from tests.policies import LINKS, make_policy

from psiphon_lab.frames import decode_packet
from psiphon_lab.namespace import PATIENCE
from psiphon_lab.packet_builder import load
from psiphon_lab.tun_device import attach_tun
from psiphon_vpn.policy import names
from psiphon_vpn.policy.base import build_base_table
from psiphon_vpn.policy.model import State

pytestmark = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="needs root and namespaces")]

FAR, FTP, CALLED = "203.0.113.80", 21, 40961
WORDS = f"PORT {names.TUN_IPV4.replace('.', ',')},{CALLED >> 8},{CALLED & 255}\r\n".encode()
FIRST = b"USER anybody\r\n"
HELPER = """
table ip helpers {
    ct helper ftp { type "ftp" protocol tcp; }
    chain out { type filter hook output priority -150; tcp dport 21 ct helper set "ftp"; }
}
"""
TCP, SYN, PUSH, ACK = 6, 2, 8, 16


class FarEnd:
    """The far end of the tunnel, packet by packet."""

    def __init__(self, tun: int) -> None:
        self._tun = tun
        self.answered = False
        """Whether the machine answered a call to the port that it named."""

    def receive(self, port: int, flags: int) -> bytes:
        """The next TCP segment from a port of the machine's with these flags."""
        while select.select([self._tun], [], [], PATIENCE)[0]:
            packet = decode_packet(os.read(self._tun, 2048))
            if packet is None or packet.protocol != TCP:
                continue
            if packet.source_port == CALLED:
                self.answered = True
            if packet.source_port == port and packet.payload[13] & flags == flags:
                return packet.payload
        raise AssertionError("no such segment came")

    def send(self, ports: tuple[int, int], flags: str, *, seq: int, ack: int = 0, data: bytes = b"") -> None:
        """A segment to the machine."""
        inet, raw = load().inet, load().Raw
        head = inet.TCP(sport=ports[0], dport=ports[1], flags=flags, seq=seq, ack=ack, window=65535)
        os.write(self._tun, bytes(inet.IP(src=FAR, dst=names.TUN_IPV4) / head / raw(data)))


def read_number(segment: bytes) -> int:
    return int.from_bytes(segment[4:8], "big")


def call_back(kernel: Kernel, *, rules_as: tuple[str, str] = ("", "")) -> bool:
    """Have the helper expect a call, call, and say whether the machine answered. rules_as: text, new text."""
    far = FarEnd(kernel.host.call(lambda: attach_tun(names.TUN_NAME)))
    kernel.ip("link", "set", "lo", "up")
    kernel.ip("link", "set", names.TUN_NAME, "up")
    kernel.ip("address", "add", f"{names.TUN_IPV4}/24", "dev", names.TUN_NAME)
    kernel.ip("route", "add", "default", "dev", names.TUN_NAME)
    index = json.loads(kernel.ip("-j", "link", "show", "dev", names.TUN_NAME))[0]["ifindex"]
    rules = build_base_table(make_policy(State.OPEN, links=replace(LINKS, tun_index=index))).render_replacement()
    assert rules_as[0] in rules
    kernel.nft(rules.replace(*rules_as) + HELPER)
    kernel.nft(f"add element inet {names.BASE_TABLE} tunnel_open {{ {names.TUN_NAME} }}\n")
    ear, sock = kernel.host.call(lambda: (socket.socket(), socket.socket()))
    with ear, sock:
        ear.bind((names.TUN_IPV4, CALLED))
        ear.listen()
        sock.setblocking(False)
        sock.connect_ex((FAR, FTP))
        port = sock.getsockname()[1]
        mine = read_number(far.receive(port, SYN)) + 1
        far.send((FTP, port), "SA", seq=1000, ack=mine)
        far.receive(port, ACK)
        for line in (FIRST, WORDS):  # the helper reads lines that follow another
            sock.sendall(line)
            far.receive(port, PUSH)
            mine += len(line)
            far.send((FTP, port), "A", seq=1001, ack=mine)
        far.send((20, CALLED), "S", seq=5000)
        # What is acknowledged after the call shows that the call was looked at before.
        far.send((FTP, port), "PA", seq=1001, ack=mine, data=b"200 as you wish\r\n")
        far.receive(port, ACK)
    return far.answered


@pytest.mark.requirement("R19")
def test_the_far_end_of_the_tunnel_cannot_call_back(kernel: Kernel) -> None:
    assert not call_back(kernel)


def test_the_control_it_can_where_related_is_enough(kernel: Kernel) -> None:
    comment = 'accept comment "answers out of the tunnel"'
    assert call_back(kernel, rules_as=(f"ct direction reply {comment}", comment))
