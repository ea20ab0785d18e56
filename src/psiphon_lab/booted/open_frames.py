# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Explains the frames of a computer that is still open while it is set up: what it asks by name, and of whom."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from psiphon_lab import addresses as plan
from psiphon_lab.dns_message import read_question
from psiphon_lab.frames import Decoded, Frame, decode_packet, describe_frame
from psiphon_lab.judge import Evidence, Flow, judge_frames

_RESOLVERS = (plan.LAN_A.router4, plan.LAN_A.router6)
_DNS = 53
_UDP_HEADER = 8
_IGMP, _HOP_BY_HOP = 2, 0
_REPORTS = {"224.0.0.22", "ff02::16"}
"""Where hosts report their multicast groups to their routers (RFC 3376, 4.2.14; RFC 3810, 5.2.14)."""
NAME, HOST = "the list host's name, asked of the provider's resolver", "core and list, from the list's host"
GROUPS = "the system leaves its multicast groups, since the service turns LLMNR and mDNS off"


def explain_frames(
    frames: Iterable[Frame], evidence: Evidence, downloads: frozenset[Flow]
) -> tuple[Counter[str], list[str]]:
    """The number of the client's frames by reason, and in words those that have none.

    Args:
        frames: frames of the time.
        evidence: for the judge, without the flows of the list's host.
        downloads: the record of the list's host.
    """
    reasons: Counter[str] = Counter()
    unexplained = []
    for verdict in judge_frames(frames, evidence):
        reason = verdict.innocent or _explain(verdict.frame, downloads)
        if reason is None:
            unexplained.append(f"{verdict.frame.wire}: {describe_frame(verdict.frame)}")
        else:
            reasons[reason] += 1
    return reasons, unexplained


def _explain(frame: Frame, downloads: frozenset[Flow]) -> str | None:
    packet = decode_packet(frame.data[14:])
    if packet is None or packet.fragment:
        return None
    if packet.destination in _REPORTS and packet.protocol in (_IGMP, _HOP_BY_HOP) and packet.hop_limit == 1:
        return GROUPS
    if packet.options:
        return None
    if packet.protocol == 17 and packet.destination in _RESOLVERS and packet.destination_port == _DNS:
        return NAME if _asks_list_host(packet) else None
    flow = Flow(
        protocol=packet.protocol,
        client=packet.source,
        client_port=packet.source_port,
        server=packet.destination,
        server_port=packet.destination_port,
    )
    return HOST if flow in downloads else None


def _asks_list_host(packet: Decoded) -> bool:
    question = read_question(packet.payload[_UDP_HEADER:])
    return question is not None and question.name == plan.LIST_NAME
