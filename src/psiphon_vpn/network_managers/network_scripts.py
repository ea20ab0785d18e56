# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The network scripts of older Fedora and its kin. Their DHCP client is dhclient, as root."""

from __future__ import annotations

from typing import Final

from psiphon_vpn.network_managers.model import NetworkManager

MANAGER: Final = NetworkManager(
    name="network scripts",
    units=("network.service",),
    leases=("/var/lib/dhclient",),
    networks=("/etc/sysconfig/network-scripts",),
)
