"""What an attack is, and how what it sends is recognised on a wire. Values; nothing here touches a system."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from psiphon_lab.frames import Frame, decode_ip

if TYPE_CHECKING:
    from psiphon_lab.leaktest.arena import Arena

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


@dataclass(frozen=True, kw_only=True)
class Attack:
    """One way to leak.

    Attributes:
        id: as in the corpus.
        name: a few words.
        reference: where it is known from: a CVE, an audit's finding, a product's issue.
        plain: what happens, for people who are no engineers.
        actors: who does it.
        recognised: how its frames are known on the wire.
        control: what shows that it would leak without the lock.
        run: does it.
        before_lock: what must be begun before the machine is locked; what it returns is `arena.begun`.
        families: the IP versions that it concerns.
        senseless: states in which it says nothing, and why.
        disturbs: whether the machine leaves its state by it (a deleted device): then the state is reached anew.
        beyond: why the lock cannot stop it, "" if it can: it is tried all the same, shown apart, and no failure.
        tools: programs that it needs; without one of them it is not made, and proves nothing.
        standin_only: whether it is the stand-in core that does it.
    """

    id: str
    name: str
    reference: str
    plain: str
    actors: tuple[Actor, ...]
    recognised: str
    control: str
    run: Callable[[Arena], None]
    before_lock: Callable[[Arena], Any] | None = None
    families: tuple[int, ...] = (4, 6)
    senseless: Mapping[Mode, str] = field(default_factory=dict)
    disturbs: bool = False
    beyond: str = ""
    tools: tuple[str, ...] = ()
    standin_only: bool = False
