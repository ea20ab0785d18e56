# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Harmless attempts to send something out of this machine, for `diagnose --live`.

Their targets are documentation addresses (RFC 5737, RFC 3849), so that even a probe that gets out reaches nobody. A
random token or a random target identifies each. They are few, small, and sent once.
"""

from __future__ import annotations

import ctypes
import errno
import ipaddress
import random
import secrets
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

NOBODY: Final = 65534
PORT, DNS_PORT = 443, 53
SO_BINDTODEVICE: Final = 25
CONTROL_TOKEN_BYTES: Final = 6
CONNECT_SECONDS: Final = 0.05
UNICAST_MAC: Final = bytes.fromhex("025053000001")
"""A locally administered address, which no manufacturer assigns (IEEE 802, bit 0x02)."""
ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6 = 0x0806, 0x0800, 0x86DD


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One attempt.

    Attributes:
        name: for people, "tcp ipv6 of a user, bound to eth0".
        target: its documentation address.
        wire: the interface that it is bound to; "" if none.
        user: sent as an ordinary user; otherwise as root.
    """

    name: str
    kind: str
    target: str
    wire: str
    user: bool
    token: bytes

    @property
    def version(self) -> int:
        """Of IP."""
        return 6 if ":" in self.target else 4


@dataclass(frozen=True, kw_only=True)
class Sent:
    """The kernel's answer to an attempt: "sent", or the name of the error."""

    probe: Probe
    outcome: str


TARGETS4: Final = tuple(
    str(ipaddress.ip_network(network)[number])
    for network in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24")
    for number in range(200, 255)
)


def make_target(version: int) -> str:
    """A documentation address that nobody has."""
    if version == 4:
        return random.choice(TARGETS4)  # noqa: S311
    return str(ipaddress.ip_network("2001:db8::/32")[secrets.randbits(90)])


def list_probes(wires: tuple[str, ...], headerless: tuple[str, ...]) -> tuple[Probe, ...]:
    """All probes, about twenty for each wire and as many unbound. Each has its own target while there are enough."""
    unused = random.sample(TARGETS4, len(TARGETS4))

    def make(kind: str, version: int, wire: str, user: bool) -> Probe:
        who = "a user" if user else "root"
        how = f"bound to {wire}" if wire else "plain"
        token = b"psiphon-live-" + secrets.token_hex(8).encode()
        name = f"{kind} IPv{version} of {who}, {how}"
        target = unused.pop() if version == 4 and unused else make_target(version)
        return Probe(name=name, kind=kind, target=target, wire=wire, user=user, token=token)

    probes = [
        make(kind, version, wire, user)
        for wire in ("", *wires)
        for kind in ("tcp", "udp", "dns", "icmp")
        for version in (4, 6)
        for user in (False, True)
    ]
    probes += [make("frame", 4, wire, False) for wire in wires if wire not in headerless]
    return tuple(probes)


def send_probes(probes: tuple[Probe, ...]) -> tuple[Sent, ...]:
    """Make every attempt once, from the network namespace of this thread."""
    users = [probe for probe in probes if probe.user]
    return (*[_try(probe) for probe in probes if not probe.user], *_as_user(lambda: [_try(probe) for probe in users]))


def _try(probe: Probe) -> Sent:
    return Sent(probe=probe, outcome=_outcome(lambda: _send(probe)))


def _as_user(work: Callable[[], list[Sent]]) -> list[Sent]:
    """Run in a thread whose sockets belong to an ordinary user.

    A socket's owner, which `meta skuid` matches, is the fsuid of the thread that made it (net/socket.c, sock_alloc);
    setfsuid(2) affects one thread, and this one ends with its work.
    """
    outcome: list[Sent] = []

    def inside() -> None:
        ctypes.CDLL(None).setfsuid(NOBODY)
        outcome.extend(work())

    thread = threading.Thread(target=inside, name="probe-user", daemon=True)
    thread.start()
    thread.join(10)
    return outcome


def _outcome(send: Callable[[], None]) -> str:
    try:
        send()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, "error")
    return "sent"


def _send(probe: Probe) -> None:
    if probe.kind == "frame":
        _send_frame(probe.wire, build_frame(probe))
        return
    family = socket.AF_INET if probe.version == 4 else socket.AF_INET6
    icmp = socket.IPPROTO_ICMP if probe.version == 4 else socket.IPPROTO_ICMPV6
    kind, protocol = {
        "tcp": (socket.SOCK_STREAM, 0),
        "udp": (socket.SOCK_DGRAM, 0),
        "dns": (socket.SOCK_DGRAM, 0),
        "icmp": (socket.SOCK_RAW, icmp),
    }[probe.kind]
    with socket.socket(family, kind, protocol) as sock:
        if probe.wire:
            sock.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, probe.wire.encode() + b"\0")
        sock.settimeout(CONNECT_SECONDS)
        if probe.kind == "tcp":
            try:
                sock.connect((probe.target, PORT))
            except TimeoutError:
                return
        elif probe.kind == "icmp":
            sock.sendto(_build_echo(probe), (probe.target, 0))
        else:
            dns = probe.kind == "dns"
            data = _build_query(probe.token) if dns else probe.token
            sock.sendto(data, (probe.target, DNS_PORT if dns else PORT))


def _build_query(token: bytes) -> bytes:
    """A query for a name that cannot exist (RFC 6761, .invalid)."""
    labels = b"".join(bytes([len(label)]) + label for label in (token, b"invalid")) + b"\0"
    return struct.pack(">HHHHHH", random.getrandbits(16), 0x0100, 1, 0, 0, 0) + labels + struct.pack(">HH", 1, 1)


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    padded = data + b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f">{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - total


def _build_echo(probe: Probe) -> bytes:
    """An echo request; the kernel fills in the checksum for IPv6."""
    kind = 8 if probe.version == 4 else 128
    body = struct.pack(">BBHHH", kind, 0, 0, 0x5053, 1) + probe.token
    return body[:2] + struct.pack(">H", checksum(body)) + body[4:]


def build_frame(probe: Probe) -> bytes:
    """A frame that no inet hook sees: UDP over IPv4, with an IP and a hardware address that nobody has."""
    udp = struct.pack(">HHHH", 40000, PORT, 8 + len(probe.token), 0) + probe.token
    source, target = (ipaddress.ip_address(text).packed for text in ("192.0.2.199", probe.target))
    head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 1, 17, 0, source, target)
    head = head[:10] + struct.pack(">H", checksum(head)) + head[12:]
    return UNICAST_MAC + UNICAST_MAC[:5] + b"\2" + struct.pack(">H", ETHERTYPE_IPV4) + head + udp


def build_control(target: str, token: bytes) -> bytes:
    """A frame that may leave: an ARP probe (RFC 5227) by root, about an address that nobody has.

    Args:
        target: the address.
        token: six bytes, in the unused field of the target's hardware address. There is no other room.
    """
    packed = ipaddress.ip_address(target).packed
    arp = struct.pack(">HHBBH6s4s6s4s", 1, 0x0800, 6, 4, 1, UNICAST_MAC, bytes(4), token, packed)
    return UNICAST_MAC[:5] + b"\2" + UNICAST_MAC + struct.pack(">H", ETHERTYPE_ARP) + arp


def _send_frame(wire: str, frame: bytes) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        sock.bind((wire, 0))
        sock.send(frame)


def send_control(wire: str, target: str, token: bytes) -> str:
    """Send the frame that may leave, so that the watch can show that it sees what leaves. Returns the outcome."""
    return _outcome(lambda: _send_frame(wire, build_control(target, token)))


def iterate_addresses(frame: bytes, *, header: bool) -> Iterator[bytes]:
    """Every address that a frame is about or goes to: of IP, of ARP, and of a neighbour solicitation.

    A probe that no rule stopped may only cause a request for its target's link-layer address. That reveals it as well.
    """
    kind = (
        int.from_bytes(frame[12:14], "big") if header else {4: 0x0800, 6: 0x86DD}.get(frame[0] >> 4 if frame else 0, 0)
    )
    body = frame[14:] if header else frame
    if kind == ETHERTYPE_ARP and len(body) >= 28:
        yield body[24:28]
    elif kind == ETHERTYPE_IPV4 and len(body) >= 20:
        yield body[16:20]
    elif kind == ETHERTYPE_IPV6 and len(body) >= 40:
        yield body[24:40]
        if body[6] == 58 and len(body) >= 64 and body[40] == 135:
            yield body[48:64]
