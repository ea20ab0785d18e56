# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's announcements, read with the service's own decoder of netlink messages."""

from __future__ import annotations

from psiphon_vpn.linux.monitor import open_network_monitor, parse_changes
from psiphon_vpn.linux.netlink import iterate_messages, read_attributes
from psiphon_vpn.linux.nfnetlink import Generation, open_generation_monitor, parse_generations

__all__ = [
    "Generation",
    "iterate_messages",
    "open_generation_monitor",
    "open_network_monitor",
    "parse_changes",
    "parse_generations",
    "read_attributes",
]
