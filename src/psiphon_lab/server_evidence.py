# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds a server's flows on its own wire, for a server that keeps no record, such as psiphond.

Capture the server's cable on the far end (`Capture(world.backbone, "server", wire="server")`); there "from_client"
means that the server host sent the frame. A flow counts once the server has answered with data. psiphond does not
answer a client that does not know its obfuscation key, so a mere connection to its port never counts. (The stand-in's
TLS answers everybody; `ServerProcess.read_flows` is stricter, so use that.)
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from psiphon_lab.frames import Decoded, Frame, decode_ip
from psiphon_lab.judge import Flow

TCP, UDP = 6, 17


def find_answered_flows(frames: Iterable[Frame], *, server: Collection[str], ports: Collection[int]) -> frozenset[Flow]:
    """The flows in which the server sent data. server: its addresses; ports: those that the tunnel protocol uses."""
    flows: set[Flow] = set()
    for frame in frames:
        packet = decode_ip(frame.data) if frame.from_client else None
        if packet is None or packet.source not in server or packet.source_port not in ports or not _carries(packet):
            continue
        flows.add(
            Flow(
                protocol=packet.protocol,
                client=packet.destination,
                client_port=packet.destination_port,
                server=packet.source,
                server_port=packet.source_port,
            )
        )
    return frozenset(flows)


def _carries(packet: Decoded) -> bool:
    if packet.fragment:
        return False
    if packet.protocol == TCP and len(packet.payload) >= 20:
        return len(packet.payload) > (packet.payload[12] >> 4) * 4
    return packet.protocol == UDP and len(packet.payload) > 8
