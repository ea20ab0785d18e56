# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The service manager's notification protocol (sd_notify(3)): readiness, status line, watchdog."""

import contextlib
import os
import socket


def notify(*assignments: str) -> None:
    """Send assignments such as "READY=1". Does nothing without a service manager."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as connection,
    ):
        connection.sendto("\n".join(assignments).encode(), address)
