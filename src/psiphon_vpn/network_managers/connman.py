# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""ConnMan."""

from __future__ import annotations

from typing import Final

from psiphon_vpn.network_managers.model import NetworkManager

MANAGER: Final = NetworkManager(name="ConnMan", units=("connman.service",))
