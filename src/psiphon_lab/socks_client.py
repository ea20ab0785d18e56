# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Fetches a page through a SOCKS proxy (RFC 1928, CONNECT without authentication), from any host of the laboratory."""

from __future__ import annotations

import ipaddress
import json
import socket
import struct

from psiphon_lab.namespace import Host

SOCKS_PORT = 1081
PATIENCE = 10.0
"""Seconds for each step. A refused step ends at once; where packets may be dropped, give fewer."""


def fetch_by_socks(host: Host, proxy: str, target: str, *, seconds: float = PATIENCE) -> str | None:
    """The address that a web server at `target` sees when `host` uses the proxy; None if that fails or takes long."""

    def fetch() -> str | None:
        try:
            with socket.create_connection((proxy, SOCKS_PORT), timeout=seconds) as connection:
                return _fetch(connection, target)
        except (OSError, ValueError):
            return None

    return host.call(fetch)


def _fetch(connection: socket.socket, target: str) -> str:
    connection.sendall(b"\x05\x01\x00")
    if connection.recv(2) != b"\x05\x00":
        raise ValueError("the proxy requires authentication")
    address = ipaddress.ip_address(target)
    kind = b"\x01" if address.version == 4 else b"\x04"
    connection.sendall(b"\x05\x01\x00" + kind + address.packed + struct.pack(">H", 80))
    if connection.recv(10)[:2] != b"\x05\x00":
        raise ValueError("the proxy did not connect")
    connection.sendall(f"GET / HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
    data = b""
    while chunk := connection.recv(65536):
        data += chunk
    return str(json.loads(data.partition(b"\r\n\r\n")[2])["address"])
