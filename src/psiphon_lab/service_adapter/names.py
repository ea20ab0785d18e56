# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What the service calls its interface, tables, sets and routing table in the kernel."""

from __future__ import annotations

from psiphon_vpn.policy.names import (
    ACCEPTED_BIT,
    ARP_TABLE,
    BASE_TABLE,
    CORE_MARK,
    DEVICE_CHAIN_PREFIX,
    EGRESS_TABLE,
    GUARD_TABLE,
    LEASE_SET,
    LEASE_SET_IPV6,
    RESOLVER_IPV4,
    ROUTE_TABLE,
    SCRATCH_TABLES,
    TUN_IPV4,
    TUN_IPV6,
    TUN_NAME,
)
from psiphon_vpn.policy.own_tables import BRIDGES, LAYERS, OWN_NAMES, Keeper, list_kept

__all__ = [
    "ACCEPTED_BIT",
    "ARP_TABLE",
    "BASE_TABLE",
    "CORE_MARK",
    "DEVICE_CHAIN_PREFIX",
    "EGRESS_TABLE",
    "GUARD_TABLE",
    "LAYERS",
    "LEASE_SET",
    "LEASE_SET_IPV6",
    "OWN_NAMES",
    "RESOLVER_IPV4",
    "ROUTE_TABLE",
    "TUN_IPV4",
    "TUN_IPV6",
    "TUN_NAME",
]

BRIDGE_GUARD = str(BRIDGES)
"""Family and name of the bridge guard, as nft(8) prints them."""
GUARDS = tuple(str(table) for table in list_kept(Keeper.HOLDER) if not table.on_request)
"""The same of the tables that the holder always has: wire guard and frame guard."""
SCRATCH_TABLE = SCRATCH_TABLES[1]
"""A table for trials, which the service removes where it finds it."""
