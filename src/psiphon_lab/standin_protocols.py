# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The protocols between the stand-ins. They have the names of real ones, and look the same to a censor.

TLS-OSSH is TLS from the first byte on. OSSH begins with random bytes, and continues with the same TLS. Only the first
packets look like the real protocol, and the laboratory's censors check only those.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import random
import secrets
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

from psiphon_lab.addresses import CORE_PORTS
from psiphon_lab.server_entry import ServerEntry

OSSH, TLS_OSSH = "OSSH", "TLS-OSSH"
PROTOCOLS = (OSSH, TLS_OSSH)
DIAL_TIMEOUT = 20.0
PREAMBLE = 32
SO_BINDTODEVICE = 25
TCP_USER_TIMEOUT_MS = 20_000

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
_held: set[asyncio.Future[None]] = set()
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def make_preamble() -> bytes:
    """Random bytes that begin neither like a TLS record nor like text."""
    data = secrets.token_bytes(PREAMBLE)
    return bytes([data[0] | 0x80]) + data[1:]


async def dial(
    entry: ServerEntry, protocol: str, hello: dict[str, object], *, bind_interface: str | None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, dict[str, Any]]:
    """Connect to a server and exchange hellos; returns the connection and the server's answer.

    Raises:
        OSError: also after DIAL_TIMEOUT, as TimeoutError.
    """
    reader, writer = await asyncio.wait_for(_open_stream(entry, protocol, bind_interface), DIAL_TIMEOUT)
    try:
        writer.write(json.dumps({"secret": entry.secret, **hello}).encode() + b"\n")
        answer = json.loads(await asyncio.wait_for(reader.readline(), DIAL_TIMEOUT) or b"null")
    except (ValueError, OSError, TimeoutError) as error:
        writer.close()
        raise OSError(errno.EPROTO, "no answer from the server") from error
    except asyncio.CancelledError:
        writer.transport.abort()  # another server was faster
        raise
    if not isinstance(answer, dict):
        writer.close()
        raise OSError(errno.ECONNRESET, "the server closed the connection")
    return reader, writer, answer


async def _open_stream(entry: ServerEntry, protocol: str, bind_interface: str | None) -> Connection:
    # Like the real core: the address in the entry determines the family of the socket.
    family = socket.AF_INET6 if ":" in entry.address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    loop = asyncio.get_running_loop()
    try:
        sock.setblocking(False)
        if bind_interface is not None:
            sock.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, bind_interface.encode() + b"\0")
        _bind_core_port(sock)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, TCP_USER_TIMEOUT_MS)
        await loop.sock_connect(sock, (entry.address, entry.ports[protocol]))
        if protocol == OSSH:
            await loop.sock_sendall(sock, make_preamble())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # the fingerprint is checked below
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        reader, writer = await asyncio.open_connection(sock=sock, ssl=context, server_hostname="")
    except BaseException:
        sock.close()
        raise
    certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True) or b""
    if hashlib.sha256(certificate).hexdigest() != entry.fingerprint:
        writer.close()
        raise OSError(errno.EPROTO, "unexpected server certificate")
    return reader, writer


def _bind_core_port(sock: socket.socket) -> None:
    """Bind a port of the stand-in's own range. The judge recognises it even before the server has recorded the flow."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    for port in random.sample(CORE_PORTS, len(CORE_PORTS)):
        try:
            sock.bind(("", port))
            return
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    raise OSError(errno.EADDRINUSE, "no source port is free")


async def listen(serve: Serve, addresses: list[str], port: int, protocol: str, context: ssl.SSLContext) -> None:
    """Serve a protocol at each address, as long as the event loop runs."""
    if protocol == TLS_OSSH:
        await asyncio.start_server(serve, addresses, port, ssl=context, backlog=128)
        return
    for address in addresses:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listener = socket.create_server((address, port), family=family, backlog=128)
        listener.setblocking(False)
        _hold(asyncio.ensure_future(_accept(listener, serve, context)))


def _hold(task: asyncio.Future[None]) -> None:
    """Keep a reference to a task, because the event loop keeps only weak ones."""
    _held.add(task)
    task.add_done_callback(_held.discard)


async def _accept(listener: socket.socket, serve: Serve, context: ssl.SSLContext) -> None:
    loop = asyncio.get_running_loop()
    while True:
        sock, _caller = await loop.sock_accept(listener)
        _hold(asyncio.ensure_future(_greet(sock, serve, context)))


async def _greet(sock: socket.socket, serve: Serve, context: ssl.SSLContext) -> None:
    """Read exactly the preamble. TLS follows, and then what `serve` handles."""
    loop = asyncio.get_running_loop()
    try:
        sock.setblocking(False)
        missing = PREAMBLE
        while missing:
            data = await asyncio.wait_for(loop.sock_recv(sock, missing), DIAL_TIMEOUT)
            if not data:
                sock.close()
                return
            missing -= len(data)
        protocol = asyncio.StreamReaderProtocol(asyncio.StreamReader(), serve)
        await loop.connect_accepted_socket(lambda: protocol, sock, ssl=context)
    except OSError:  # the client disconnected, or does not speak TLS
        sock.close()
