# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What the two ends of the load agree on. Constants only."""

from __future__ import annotations

import struct

TCP_SOURCE = 5201
TCP_SINK = 5202
TCP_HOLD = 5203
"""Sends a byte and keeps the connection."""
TCP_GREET = 5204
"""Sends a byte and closes."""
UDP_ECHO = 5201
UDP_SINK = 5202
"""Reports after every ACK_EVERY datagrams of a sender how many it has received of it."""
UDP_SOURCE = 5203
"""Is told up to which datagram it may send to the one who asks, and sends."""
ACK_EVERY = 16
WINDOW = 128
"""Datagrams of one flow on their way."""
DATAGRAM = 1200
COUNT = struct.Struct("!Q")
