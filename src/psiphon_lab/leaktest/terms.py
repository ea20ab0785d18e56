"""The states in which attacks are tried, who makes them, and how what they send is recognised on a wire. Values."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from psiphon_lab.frames import Frame, decode_ip

TCP, UDP = 6, 17


class Mode(enum.StrEnum):
    """The states of the machine in which attacks are tried. CONTROL is none: the lock is off, everything must show."""

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


MODES = tuple(mode for mode in Mode if mode is not Mode.CONTROL)


class Actor(enum.StrEnum):
    """Who makes an attempt."""

    ROOT = "root"
    USER = "user"
    CONTAINER = "container"
    NEIGHBOUR = "neighbour"
    PROVIDER = "provider"


@dataclass(frozen=True, kw_only=True)
class Trace:
    """How a frame of one attempt is known. Any of these is enough.

    Attributes:
        token: bytes anywhere in the frame.
        source_port: of TCP or UDP, whatever the addresses: a rewritten packet is still recognised.
        target_port: the same for what answers an attempt from outside.
        arp_sender: an IPv4 address that an ARP frame speaks for.
        advertised: an IPv6 address that a neighbour advertisement speaks for.
    """

    token: bytes = b""
    source_port: int = 0
    target_port: int = 0
    arp_sender: bytes = b""
    advertised: bytes = b""

    def matches(self, frame: Frame) -> bool:
        """Whether this frame is of that attempt."""
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
