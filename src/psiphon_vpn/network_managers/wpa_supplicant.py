# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""wpa_supplicant, which logs in for other network managers: to wireless and wired networks (802.1X)."""

from __future__ import annotations

from typing import Final

from psiphon_vpn.network_managers.model import NetworkManager

MANAGER: Final = NetworkManager(
    name="wpa_supplicant",
    units=("wpa_supplicant.service", "wpa_supplicant@.service"),
    logins=("wpa_supplicant",),
    networks=("/etc/wpa_supplicant",),
)
