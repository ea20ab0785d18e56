# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Values: the states in which attacks are tried, the actors, and how to recognise frames on a wire."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from psiphon_lab.frames import Frame, decode_ip

TCP, UDP = 6, 17


class Mode(enum.StrEnum):
    """The states in which attacks are tried. CONTROL has no lock: there everything must be seen."""

    CONTROL = "control"
    BOOT = "boot"
    CONNECTING = "connecting"
    OPEN = "open"
    CORE_KILLED = "core-killed"
    CORE_STOPPED = "core-stopped"
    DAEMON_KILLED = "daemon-killed"
    DAEMON_STOPPED = "daemon-stopped"
    SERVICE_STOPPED = "service-stopped"
    RESTARTING = "restarting"
    UPGRADING = "upgrading"
    FLUSHED = "flushed"
    TRANSITION = "transition"


OWNER, EGRESS = "owner_flag", "egress_hook"
"""Mechanisms of the kernel by the service's names: owned tables (Linux 5.12), the egress hook (Linux 5.16)."""
NEEDED_IN_STATE = {Mode.FLUSHED: OWNER}
"""States in which everything leaks for a moment without a mechanism."""
MODES = tuple(mode for mode in Mode if mode is not Mode.CONTROL)


class Actor(enum.StrEnum):
    """Who fires a shot."""

    ROOT = "root"
    USER = "user"
    CONTAINER = "container"
    NEIGHBOUR = "neighbour"
    PROVIDER = "provider"


@dataclass(frozen=True, kw_only=True)
class Trace:
    """How to recognise a frame of one shot. One match is enough.

    Attributes:
        token: bytes anywhere in the frame.
        source_port: of TCP or UDP, with any addresses, so that a rewritten packet is recognised too.
        target_port: the same for answers to a shot from outside.
        arp_sender: the sender's IPv4 address in an ARP frame.
        advertised: the target's IPv6 address in a neighbour advertisement.
    """

    token: bytes = b""
    source_port: int = 0
    target_port: int = 0
    arp_sender: bytes = b""
    advertised: bytes = b""

    def matches(self, frame: Frame) -> bool:
        """Whether a frame is one of the shot's."""
        data = frame.data
        if self.token and self.token in data:
            return True
        if self.arp_sender and data[12:14] == b"\x08\x06" and data[28:32] == self.arp_sender:
            return True
        packet = decode_ip(data)
        if packet is None:
            return False
        if self.advertised and packet.protocol == 58 and packet.payload[:1] == b"\x88":
            return packet.payload[8:24] == self.advertised
        if packet.protocol not in (TCP, UDP):
            return False
        return packet.source_port == (self.source_port or -1) or packet.destination_port == (self.target_port or -1)
