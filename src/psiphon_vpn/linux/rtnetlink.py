# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""rtnetlink(7) as the service uses it: requests that are answered, and listings that are complete.

A *listing* (a dump) comes in many pieces, and a socket whose listing was left half-read answers EBUSY to every later
request, for ever. So each listing has its own socket, which is closed however the reading ends: it returns everything,
or it raises. Neither a loop that ends early nor a cancelled task can leave anything unread.
"""

import asyncio
import errno
import os
import socket
import struct
from collections.abc import Callable, Iterable
from typing import TypeVar

from psiphon_vpn.linux.netlink import HEADER

T = TypeVar("T")
Message = tuple[int, bytes]
"""Type (RTM_*) and body of a request."""

RTM_NEWLINK, RTM_GETLINK, RTM_DELLINK = 16, 18, 17
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_DUMP, NLM_F_CREATE = 0x1, 0x4, 0x10, 0x200, 0x300, 0x400
NLMSG_ERROR, NLMSG_DONE = 2, 3
SOL_NETLINK, NETLINK_GET_STRICT_CHK = 270, 12
_RECEIVE_TIMEOUT = 1.0  # seconds; the kernel has answered before send() returns
_LARGEST = 1 << 16
"""The kernel fills at most 32 KiB at once (af_netlink.c, netlink_recvmsg)."""
_PAUSES = (0.0, 0.001, 0.005, 0.02, 0.1, 0.3)
"""Before each attempt to read what changes while it is read; seconds."""
_HARMLESS = frozenset({0, errno.EEXIST})


def _open() -> socket.socket:
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    opened.settimeout(_RECEIVE_TIMEOUT)
    return opened


def _encode(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    data = HEADER.pack(HEADER.size + len(body), kind, NLM_F_REQUEST | flags, sequence, 0) + body
    return data + b"\0" * (-len(data) % 4)


def _read_error(body: bytes) -> int:
    """The error number of an NLMSG_ERROR or NLMSG_DONE; 0 for success."""
    return -int(struct.unpack_from("=i", body)[0]) if len(body) >= 4 else 0


def _raise(number: int) -> None:
    if number:
        raise OSError(number, os.strerror(number))


class Interrupted(OSError):
    """The listed objects changed meanwhile: something may be missing."""

    def __init__(self) -> None:
        super().__init__(errno.EINTR, "it changed while it was listed")


async def list_all(kind: int, body: bytes, decode: Callable[[int, bytes], T | None]) -> tuple[T, ...]:
    """Everything that the kernel lists, complete; read again while it changes.

    Args:
        kind: RTM_GET*.
        body: the header for the kind, and attributes that select. Kernels before 4.20 may list more.
        decode: makes a value from type and body of a message, or None to leave it out.

    Raises:
        Interrupted: it never stopped changing.
        OSError: the kernel refused, or does not answer.
    """
    for pause in _PAUSES:
        await asyncio.sleep(pause)
        try:
            return await list_once(kind, body, decode)
        except Interrupted:
            continue
    raise Interrupted


async def list_once(kind: int, body: bytes, decode: Callable[[int, bytes], T | None]) -> tuple[T, ...]:
    """Do what `list_all` does, once.

    Raises:
        Interrupted: it changed meanwhile.
        OSError: the kernel refused, or does not answer.
    """
    found: list[T] = []
    interrupted = False
    with _open() as listing:
        try:
            listing.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
        except OSError as error:
            if error.errno != errno.ENOPROTOOPT:
                raise
        listing.send(_encode(kind, NLM_F_DUMP, 1, body))
        while True:
            data, _, flags, _ = listing.recvmsg(_LARGEST)
            if flags & socket.MSG_TRUNC:
                raise OSError(errno.EMSGSIZE, "a netlink message is too large")
            offset = 0
            while offset + HEADER.size <= len(data):
                length, answer, marks, _, _ = HEADER.unpack_from(data, offset)
                if length < HEADER.size or offset + length > len(data):
                    raise OSError(errno.EPROTO, "a malformed netlink message")
                payload = data[offset + HEADER.size : offset + length]
                offset += (length + 3) & ~3
                interrupted = interrupted or bool(marks & NLM_F_DUMP_INTR)
                if answer in {NLMSG_DONE, NLMSG_ERROR}:
                    _raise(_read_error(payload))
                    if interrupted:
                        raise Interrupted
                    return tuple(found)
                value = decode(answer, payload)
                if value is not None:
                    found.append(value)
            await asyncio.sleep(0)  # let other tasks run during a long listing


def ask(kind: int, body: bytes) -> list[Message]:
    """Ask for one object, not for a listing.

    Raises:
        OSError: the kernel refused (ENODEV: there is none), or does not answer.
    """
    with _open() as asking:
        asking.send(_encode(kind, NLM_F_ACK, 1, body))
        found: list[Message] = []
        while True:
            data = asking.recv(_LARGEST)
            offset = 0
            while offset + HEADER.size <= len(data):
                length, answer, _, _, _ = HEADER.unpack_from(data, offset)
                if length < HEADER.size or offset + length > len(data):
                    raise OSError(errno.EPROTO, "a malformed netlink message")
                payload = data[offset + HEADER.size : offset + length]
                offset += (length + 3) & ~3
                if answer == NLMSG_ERROR:
                    _raise(_read_error(payload))
                    return found
                found.append((answer, payload))


class RouteSocket:
    """A netlink socket that changes things, and waits for the kernel's answer to each change. It lists nothing."""

    def __init__(self) -> None:
        self._socket = _open()
        self._socket.bind((0, 0))
        self._sequence = 0

    @property
    def port(self) -> int:
        """The port id, by which announcements identify this socket's changes."""
        return int(self._socket.getsockname()[0])

    def close(self) -> None:
        """Close the socket; what it did stays."""
        self._socket.close()

    def add(self, messages: Iterable[Message]) -> list[str]:
        """Add what is missing, in one write. What is there already stays as it is.

        Returns:
            The kernel's errors, except that something exists already.

        Raises:
            OSError: it did not answer.
        """
        # A link is only ever changed here, never made; an address that exists would only be refused.
        requests = [(kind, 0 if kind == RTM_NEWLINK else NLM_F_CREATE | NLM_F_EXCL, body) for kind, body in messages]
        answers = self.change_all(requests)
        return [
            f"{kind}: {os.strerror(number)}"
            for (kind, _, _), number in zip(requests, answers, strict=True)
            if number not in _HARMLESS
        ]

    def change(self, kind: int, body: bytes, *, flags: int = 0) -> None:
        """Make one change.

        Args:
            kind: RTM_*.
            body: the request.
            flags: NLM_F_* beside those of every request.

        Raises:
            OSError: the kernel refused, or did not answer.
        """
        _raise(self.change_all([(kind, flags, body)])[0])

    def change_all(self, requests: Iterable[tuple[int, int, bytes]]) -> list[int]:
        """Make changes in one write; a refused one does not prevent the others.

        Args:
            requests: type (RTM_*), flags (NLM_F_* beside those of every request) and body of each.

        Returns:
            For each 0, or the kernel's error number.

        Raises:
            OSError: it did not answer.
        """
        requests = list(requests)
        data, wanted = b"", {}
        for place, (kind, flags, body) in enumerate(requests):
            self._sequence = self._sequence % 0x7FFFFFFF + 1
            data += _encode(kind, NLM_F_ACK | flags, self._sequence, body)
            wanted[self._sequence] = place
        answers = [0] * len(requests)
        if data:
            self._socket.send(data)
        while wanted:
            received = self._socket.recv(_LARGEST)
            offset = 0
            while offset + HEADER.size + 4 <= len(received):
                length, kind, _, sequence, _ = HEADER.unpack_from(received, offset)
                if kind == NLMSG_ERROR and sequence in wanted:
                    answers[wanted.pop(sequence)] = _read_error(received[offset + HEADER.size : offset + length])
                offset += max((length + 3) & ~3, HEADER.size)
        return answers
