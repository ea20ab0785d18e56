# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether the port of the SOCKS proxy is free: any user of this machine may take it first."""

import socket

LOOPBACK = "127.0.0.1"


def is_free(port: int) -> bool:
    """Whether a program could listen there now.

    Args:
        port: TCP, on the IPv4 loopback address.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As the core does (Go's net package), so that connections that have just ended do not matter.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
            probe.listen(1)
        except OSError:
            return False
    return True
