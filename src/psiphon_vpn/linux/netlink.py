# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The framing that all netlink messages share (netlink(7)): messages, and the attributes in them."""

import contextlib
import socket
import struct
from collections.abc import Iterator

HEADER = struct.Struct("=IHHII")
"""struct nlmsghdr: length, type, flags, sequence number, port id."""
_ATTRIBUTE = struct.Struct("=HH")
"""struct nlattr: length, type."""


BUFFER_BYTES = 1 << 20
_SO_RCVBUFFORCE = 33


def widen(monitor: socket.socket) -> None:
    """Enlarge the receive buffer beyond net.core.rmem_max, if permitted (CAP_NET_ADMIN)."""
    monitor.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
    with contextlib.suppress(PermissionError):
        monitor.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, BUFFER_BYTES)


def iterate_messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and body of each message in what a netlink socket received. Ends at the first that is malformed."""
    for kind, body, _ in iterate_announcements(data):
        yield kind, body


def iterate_announcements(data: bytes) -> Iterator[tuple[int, bytes, int]]:
    """The same with the port id: in an announcement, of the socket that requested the change; 0 is the kernel."""
    offset = 0
    while offset + HEADER.size <= len(data):
        length, kind, _, _, port = HEADER.unpack_from(data, offset)
        if length < HEADER.size or offset + length > len(data):
            return
        yield kind, data[offset + HEADER.size : offset + length], port
        offset += (length + 3) & ~3


def iterate_attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Number (flags taken off) and value of each attribute in the rest of a message. Ends at the first malformed."""
    offset = 0
    while offset + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4 or offset + length > len(data):
            return
        yield kind & 0x3FFF, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def read_attributes(data: bytes) -> dict[int, bytes]:
    """The same by number, where each is there once."""
    # Without the generator: most of the time for reading a ruleset is spent here.
    found = {}
    offset, end = 0, len(data)
    while offset + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4 or offset + length > end:
            break
        found[kind & 0x3FFF] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def write_attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded."""
    length = 4 + len(payload)
    return _ATTRIBUTE.pack(length, kind) + payload + b"\0" * (-length % 4)
