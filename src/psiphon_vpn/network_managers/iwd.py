# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""iwd, which logs in to wireless networks; its ead does so on wired ones."""

from __future__ import annotations

from typing import Final

from psiphon_vpn.network_managers.model import NetworkManager

MANAGER: Final = NetworkManager(
    name="iwd", units=("iwd.service",), logins=("iwd", "ead"), cable_logins=("ead",), encoded_networks=("/var/lib/iwd",)
)
