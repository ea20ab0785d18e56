# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What a computer that is set up may send in the open: each reason holds for its own frames only."""

from __future__ import annotations

import struct
from dataclasses import replace

from psiphon_lab import addresses as plan
from psiphon_lab.booted.open_frames import HOST, NAME, explain_frames
from psiphon_lab.dns_message import A, encode_name
from psiphon_lab.frames import Frame
from psiphon_lab.judge import Flow, world_evidence
from psiphon_lab.packet_builder import SYN, ip_packet, tcp_packet, udp_packet

CLIENT, PORT = plan.LAN_A.client4, 40000
DOWNLOAD = Flow(protocol=6, client=CLIENT, client_port=PORT, server=plan.LIST_HOST4, server_port=443)


def frame(packet: bytes) -> Frame:
    return Frame(time=0.0, wire="provider_a", data=bytes(12) + b"\x08\0" + packet, from_client=True)


def ask(name: str, resolver: str) -> Frame:
    question = struct.pack("!HHHHHH", 1, 0x0100, 1, 0, 0, 0) + encode_name(name) + struct.pack("!HH", A, 1)
    return frame(udp_packet(CLIENT, resolver, (PORT, 53), question))


def call(host: str, port: int) -> Frame:
    return frame(tcp_packet(CLIENT, host, (PORT, port), SYN))


def list_reasons(*frames: Frame) -> tuple[set[str], int]:
    reasons, unexplained = explain_frames(frames, world_evidence(), frozenset({DOWNLOAD}))
    return set(reasons), len(unexplained)


def test_the_lists_host_its_name_and_nothing_else_are_explained() -> None:
    right = (ask(plan.LIST_NAME, plan.LAN_A.router4), call(plan.LIST_HOST4, 443))
    assert list_reasons(*right) == ({NAME, HOST}, 0)
    wrong = (
        ask(plan.ECHO_NAME, plan.LAN_A.router4),
        ask(plan.LIST_NAME, plan.INTERNET4),
        call(plan.LIST_HOST4, 80),
        call(plan.INTERNET4, 443),
        frame(ip_packet(CLIENT, "224.0.0.22", 2, bytes(8), hop_limit=64)),
        frame(ip_packet(CLIENT, plan.INTERNET4, 2, bytes(8), hop_limit=1)),
    )
    assert list_reasons(*wrong) == (set(), len(wrong))


def test_what_the_computer_receives_is_not_judged() -> None:
    assert list_reasons(replace(call(plan.INTERNET4, 443), from_client=False)) == (set(), 0)
