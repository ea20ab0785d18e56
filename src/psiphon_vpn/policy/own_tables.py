# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The list of our tables: family, name, keeper and layer of each.

Code that needs all of them, or all of one keeper, takes them from here, so that no place forgets a new table. Their
names are written in `names` alone.
"""

import enum
from dataclasses import dataclass
from typing import Final

from psiphon_vpn.policy import names


class Keeper(enum.StrEnum):
    """The process that loads a table and puts it back."""

    DAEMON = "the daemon"
    HOLDER = "the holder"
    """psiphon-guard.service: the kernel lets no other process touch its tables, and removes them when it ends."""
    READING = "a reading"
    """Dormant copies that see no packet and exist for a moment."""


@dataclass(frozen=True, kw_only=True)
class OwnTable:
    """One table of ours."""

    family: str
    name: str
    keeper: Keeper
    layer: str = ""
    """Name of the layer in documents and reports; empty for a copy, which is no layer."""
    on_request: bool = False
    """Whether it exists only after root has allowed what it guards (a bridge)."""

    @property
    def address(self) -> tuple[str, str]:
        """Family and name: the kernel's key for a table."""
        return self.family, self.name

    def __str__(self) -> str:
        return f"{self.family} {self.name}"


BASE: Final = OwnTable(family="inet", name=names.BASE_TABLE, keeper=Keeper.DAEMON, layer="base table")
GUARD: Final = OwnTable(family="inet", name=names.GUARD_TABLE, keeper=Keeper.HOLDER, layer="wire guard")
EGRESS: Final = OwnTable(family="netdev", name=names.EGRESS_TABLE, keeper=Keeper.DAEMON, layer="egress guard")
FRAMES: Final = OwnTable(family="netdev", name=names.FRAME_TABLE, keeper=Keeper.HOLDER, layer="frame guard")
BRIDGES: Final = OwnTable(
    family="bridge", name=names.BRIDGE_TABLE, keeper=Keeper.HOLDER, layer="bridge guard", on_request=True
)
ARP: Final = OwnTable(family="arp", name=names.ARP_TABLE, keeper=Keeper.DAEMON, layer="ARP table")

LAYERS: Final = (BASE, GUARD, EGRESS, FRAMES, BRIDGES, ARP)
"""The tables that see packets."""
OWN_TABLES: Final = (
    *LAYERS,
    *(
        OwnTable(family=family, name=name, keeper=Keeper.READING)
        for family in sorted({table.family for table in LAYERS})
        for name in names.SCRATCH_TABLES
    ),
)
"""All of them."""
OWN_NAMES: Final = frozenset(table.name for table in OWN_TABLES)
REMOVAL: Final = tuple(reversed(OWN_TABLES))
"""Order of removal: the base table, which alone stops everything, is last."""


def list_kept(keeper: Keeper) -> tuple[OwnTable, ...]:
    """The tables of one keeper."""
    return tuple(table for table in OWN_TABLES if table.keeper is keeper)
