# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""NetworkManager."""

from __future__ import annotations

from typing import Final

from psiphon_vpn.network_managers.model import NetworkManager

MANAGER: Final = NetworkManager(
    name="NetworkManager",
    units=("NetworkManager.service",),
    # Ignore the TUN, send no connectivity checks, use the resolver in the tunnel (NetworkManager.conf(5)).
    files={"/usr/lib/NetworkManager/conf.d/zzz-psiphon-vpn.conf": "NetworkManager.conf"},
    # Not restarted: it would take Wi-Fi down with it.
    reread="reload",
    # The network's own resolvers, and still no connectivity checks.
    released_files={"/run/NetworkManager/conf.d/zzz-psiphon-vpn.conf": "NetworkManager-released.conf"},
    leases=("/var/lib/NetworkManager",),
    networks=("/etc/NetworkManager/system-connections", "/run/NetworkManager/system-connections"),
)
