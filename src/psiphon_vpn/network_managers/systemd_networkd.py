# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""systemd-networkd."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from psiphon_vpn.network_managers.model import NetworkManager

LINKS: Final = Path("/run/systemd/netif/links")
_MAX_STATE_FILE: Final = 65536


def find_portal(index: int, links: Path | None = None) -> bool:
    """Whether the network announced a sign-in page by DHCP or router advertisement (RFC 8910).

    systemd-networkd (254 and later) records it in its state file of the link.

    Args:
        index: interface index of the uplink.
        links: directory of those files; None for the usual one.
    """
    try:
        with ((links or LINKS) / str(index)).open("rb") as file:
            lines = file.read(_MAX_STATE_FILE).splitlines()
    except OSError:
        return False
    return any(line.startswith(b"CAPTIVE_PORTAL=") and len(line) > len(b"CAPTIVE_PORTAL=") for line in lines)


MANAGER: Final = NetworkManager(
    name="systemd-networkd",
    units=("systemd-networkd.service",),
    users=("systemd-network",),
    files={
        # It removes rules and routes of others unless configured not to (systemd 246 and 249, networkd.conf.d(5)).
        "/usr/lib/systemd/networkd.conf.d/zzz-psiphon-vpn.conf": "networkd.conf",
        # A user's .network file that matches every name must not configure the TUN: no address, no query, no route.
        # The first match wins (systemd.network(5)).
        "/usr/lib/systemd/network/00-psiphon-vpn-tun.network": "tun.network",
    },
    reread="restart",
    leases=("/run/systemd/netif/leases", "/run/systemd/netif/links"),
    networks=("/etc/systemd/network", "/run/systemd/network"),
    find_portal=find_portal,
)
