# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The far end of the load, on the internet's host: `python -m psiphon_lab.bench.far_end`.

It gives and takes bytes as fast as it can. It prints "ready" once everything listens, and ends only by a signal.
"""

from __future__ import annotations

import contextlib
import os
import resource
import selectors
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

from psiphon_lab.bench import ports

CHUNK = bytes(1 << 16)
Serve = Callable[[socket.socket], None]


def _give(connection: socket.socket) -> None:
    with contextlib.suppress(OSError), connection:
        while True:
            connection.sendall(CHUNK)


def _take(connection: socket.socket) -> None:
    buffer = bytearray(1 << 18)
    with contextlib.suppress(OSError), connection:
        while connection.recv_into(buffer):
            pass


def _accept_each(listener: socket.socket, serve: Serve) -> None:
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=(connection,), daemon=True).start()


def _greet_all(listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        with contextlib.suppress(OSError), connection:
            connection.sendall(b"k")


def _hold_all(listener: socket.socket) -> None:
    """Keep any number of connections until their other ends close them."""
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is listener:
                connection, _address = listener.accept()
                with contextlib.suppress(OSError):
                    connection.sendall(b"k")
                selector.register(connection, selectors.EVENT_READ)
                continue
            held: Any = key.fileobj
            try:
                ended = not held.recv(1024)
            except OSError:
                ended = True
            if ended:
                selector.unregister(held)
                held.close()


def _echo(sock: socket.socket) -> None:
    while True:
        data, peer = sock.recvfrom(65536)
        with contextlib.suppress(OSError):
            sock.sendto(data, peer)


def _count(sock: socket.socket) -> None:
    received: dict[Any, int] = {}
    while True:
        _, peer = sock.recvfrom(65536)
        count = received[peer] = received.get(peer, 0) + 1
        if count % ports.ACK_EVERY == 0:
            with contextlib.suppress(OSError):
                sock.sendto(ports.COUNT.pack(count), peer)


def _send_on_demand(sock: socket.socket) -> None:
    sent: dict[Any, int] = {}
    payload = bytes(ports.DATAGRAM)
    while True:
        data, peer = sock.recvfrom(64)
        wanted = ports.COUNT.unpack(data)[0]
        for _ in range(min(wanted - sent.get(peer, 0), 4 * ports.WINDOW)):
            with contextlib.suppress(OSError):
                sock.sendto(payload, peer)
        sent[peer] = max(wanted, sent.get(peer, 0))


STREAMS: dict[int, Serve] = {
    ports.TCP_SOURCE: lambda listener: _accept_each(listener, _give),
    ports.TCP_SINK: lambda listener: _accept_each(listener, _take),
    ports.TCP_HOLD: _hold_all,
    ports.TCP_GREET: _greet_all,
}
DATAGRAMS: dict[int, Serve] = {
    ports.UDP_ECHO: _echo,
    ports.UDP_SINK: _count,
    ports.UDP_SOURCE: _send_on_demand,
}


def listen(port: int, kind: socket.SocketKind) -> socket.socket:
    """A socket for both families."""
    sock = socket.socket(socket.AF_INET6, kind)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("::", port))
    if kind is socket.SOCK_STREAM:
        sock.listen(4096)
    else:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    return sock


def raise_file_limit() -> None:
    """Allow this process as many descriptors as it may have."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def main() -> int:
    """Serve until a signal."""
    raise_file_limit()
    for kind, services in ((socket.SOCK_STREAM, STREAMS), (socket.SOCK_DGRAM, DATAGRAMS)):
        for port, serve in services.items():
            threading.Thread(target=serve, args=(listen(port, kind),), daemon=True).start()
    os.write(1, b"ready\n")
    threading.Event().wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
