# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Does the tunnel carry packets? A DNS query through the TUN shows it (ICMP does not pass the tunnel)."""

import asyncio
import secrets
import socket
import struct
from collections.abc import Callable

DNS_PORT = 53
_ROOT_NS_QUESTION = b"\x00" + struct.pack(">HH", 2, 1)  # ".", type NS, class IN: says nothing about the user
_FIRST_RESEND_SECONDS, _MAX_RESEND_SECONDS = 0.05, 1.0
"""Pauses between repetitions: short at first, since the first query may come just before the core's packet tunnel is
ready, then ever longer, since the way through the tunnel may take a second."""


def build_question(identifier: int) -> bytes:
    """A DNS query for the root's name servers, recursion desired (RFC 1035 4.1)."""
    return struct.pack(">HHHHHH", identifier, 0x0100, 1, 0, 0, 0) + _ROOT_NS_QUESTION


def is_answer(data: bytes, identifier: int) -> bool:
    """Whether this is a response to that query, whatever its answer code: packets went both ways."""
    return len(data) >= 12 and data[:2] == struct.pack(">H", identifier) and bool(data[2] & 0x80)


async def ask(server: str, *, source: str, device: str, seconds: float) -> bool:
    """Ask a resolver over UDP from one device and address, whatever it answers.

    Args:
        server: the resolver's address.
        source: our address, of the same family.
        device: interface that the socket is bound to (SO_BINDTODEVICE, socket(7)).
        seconds: how long to try; the question is repeated meanwhile, and an answer to any of these is one.

    Returns:
        Whether an answer came.
    """
    identifier = secrets.randbelow(0x10000)
    question = build_question(identifier)
    answer = await exchange(
        question, lambda data: is_answer(data, identifier), server=server, source=source, device=device, seconds=seconds
    )
    return answer is not None


async def exchange(
    question: bytes, is_answer: Callable[[bytes], bool], *, server: str, source: str, device: str, seconds: float
) -> bytes | None:
    """Send a question to a resolver, again and again, until an answer comes.

    Args:
        question: the message.
        is_answer: whether a message answers it; others are ignored.
        server: the resolver's address.
        source: our address, of the same family.
        device: interface that the socket is bound to.
        seconds: how long to try.

    Returns:
        The answer; None if none came.
    """
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    loop = asyncio.get_running_loop()
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as connection:
        try:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
            connection.bind((source, 0))
            connection.connect((server, DNS_PORT))
        except OSError:
            return None
        deadline = loop.time() + seconds
        pause = _FIRST_RESEND_SECONDS
        while (left := deadline - loop.time()) > 0:
            try:
                connection.send(question)
                async with asyncio.timeout(min(pause, left)):
                    while not is_answer(data := await loop.sock_recv(connection, 4096)):
                        pass
                    return data
            except TimeoutError:
                pass
            except OSError:
                # Refused at once, by the lock or because the TUN is down: retry later.
                await asyncio.sleep(min(pause, left))
            pause = min(pause * 2, _MAX_RESEND_SECONDS)
    return None
