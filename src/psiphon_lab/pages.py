# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Fetches a page of the laboratory's internet on a host."""

from __future__ import annotations

import json
import socket

from psiphon_lab import addresses as plan
from psiphon_lab.namespace import Host

PAGE_SECONDS = 1.5
SO_BINDTODEVICE = 25


def fetch_page(host: Host, *, interface: str = "", seconds: float = PAGE_SECONDS) -> str | None:
    """The address that a page on the internet sees of a host; None when nothing comes of it.

    interface: where it must leave by, if that matters. seconds: how long to wait for each answer.
    """

    def fetch() -> str | None:
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as connection:
                connection.settimeout(seconds)
                if interface:
                    connection.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, interface.encode() + b"\0")
                connection.connect((plan.INTERNET4, 80))
                connection.sendall(f"GET / HTTP/1.1\r\nHost: {plan.INTERNET4}\r\n\r\n".encode())
                data = b""
                while chunk := connection.recv(65536):
                    data += chunk
                return str(json.loads(data.partition(b"\r\n\r\n")[2])["address"])
        except (OSError, ValueError):
            return None

    return host.call(fetch)
