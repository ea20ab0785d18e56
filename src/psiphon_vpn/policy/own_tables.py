"""The one list of our tables: family, name, who keeps each, and which layer it is.

Whoever needs all of them, or all of one keeper's, takes them from here, so that a new table cannot be forgotten in one
place. Their names are written in `names` alone.
"""

import enum
from dataclasses import dataclass
from typing import Final

from psiphon_vpn.policy import names


class Keeper(enum.StrEnum):
    """Who loads a table, and puts it back."""

    DAEMON = "the daemon"
    HOLDER = "the holder"
    """psiphon-guard.service: the kernel lets nobody else touch its tables, and removes them when it ends."""
    READING = "a reading"
    """Dormant copies, which no packet meets; they stand for a moment."""


@dataclass(frozen=True, kw_only=True)
class OwnTable:
    """One table of ours."""

    family: str
    name: str
    keeper: Keeper
    layer: str = ""
    """What the layer is called in the documents and in reports; nothing for a copy, which is none."""
    on_request: bool = False
    """Whether it is there only on a machine whose root asked for what it makes safe."""

    @property
    def address(self) -> tuple[str, str]:
        """Family and name: how the kernel tells tables apart."""
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
"""The tables that packets meet."""
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
"""In the order in which they are removed: the base table, which alone stops everything, is the last."""


def list_kept(keeper: Keeper) -> tuple[OwnTable, ...]:
    """The tables of one keeper."""
    return tuple(table for table in OWN_TABLES if table.keeper is keeper)
