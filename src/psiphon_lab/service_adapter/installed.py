# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""An installed service: its setup script, its paths, its units, its user."""

from __future__ import annotations

from typing import Final

from psiphon_vpn.system.layout import GROUP, KILLSWITCH_UNIT, SERVICE_UNIT, USER, Layout

__all__ = ["CONFIG_DIR", "GROUP", "KILLSWITCH_UNIT", "SERVICE_UNIT", "SETUP_SCRIPT", "USER", "Layout"]

SETUP_SCRIPT: Final = "Psiphon-Linux-VPN-Service-Setup.sh"
"""Name of the script in a checkout that installs and removes the service."""
CONFIG_DIR: Final = Layout().config.parent
"""Where an installation has its configuration."""
