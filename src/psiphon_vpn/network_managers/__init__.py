# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The network managers: one module for each, and the list from which all other code takes them.

A new one is a module here and its line in this list (CONTRIBUTING.md, "A new network manager").
"""

from __future__ import annotations

from typing import Final

from psiphon_vpn.network_managers import (
    connman,
    dhcpcd,
    ifupdown,
    iwd,
    network_scripts,
    networkmanager,
    systemd_networkd,
    wicked,
    wpa_supplicant,
)
from psiphon_vpn.network_managers.model import NetworkManager

MANAGERS: Final[tuple[NetworkManager, ...]] = (
    systemd_networkd.MANAGER,
    networkmanager.MANAGER,
    ifupdown.MANAGER,
    network_scripts.MANAGER,
    wicked.MANAGER,
    dhcpcd.MANAGER,
    wpa_supplicant.MANAGER,
    iwd.MANAGER,
    connman.MANAGER,
)
UNITS: Final = tuple(unit for manager in MANAGERS for unit in manager.units)
"""Units that bring interfaces up. Each gets a drop-in that requires the boot lock: without it interfaces stay down."""
USERS: Final = ("root", *(user for manager in MANAGERS for user in manager.users))
"""Users that send DHCP; most network managers do it as root."""


def find_portal(index: int) -> bool:
    """Whether a network manager noted that the network of this interface has a sign-in page. Nothing is sent."""
    return any(manager.find_portal is not None and manager.find_portal(index, None) for manager in MANAGERS)
