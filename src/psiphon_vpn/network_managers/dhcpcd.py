"""dhcpcd, which drops its rights to a user of its own on some distributions."""

from __future__ import annotations

from typing import Final

from psiphon_vpn.network_managers.model import NetworkManager

MANAGER: Final = NetworkManager(
    name="dhcpcd", units=("dhcpcd.service", "dhcpcd@.service"), users=("dhcpcd",), leases=("/var/lib/dhcpcd",)
)
