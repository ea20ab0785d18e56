# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Images of tables that were found right recently: readings are compared with them, and they load the tables again."""

import logging
from collections import OrderedDict
from collections.abc import Iterable

from psiphon_vpn.linux.nfnetlink import Message, NftSocket
from psiphon_vpn.policy.ruleset import Table

log = logging.getLogger(__name__)

_KEPT = 24
"""How many: a machine that alternates between two networks needs these. Most messages of an image are in others too."""
_MOST_DOUBTS = 3


class Images:
    """Loads again, in about a millisecond and without nft, what nft loaded once and was found right.

    Args:
        netlink: by which tables are loaded.
    """

    def __init__(self, netlink: NftSocket) -> None:
        self._netlink = netlink
        self._kept: OrderedDict[Table, tuple[Message, ...]] = OrderedDict()
        self._doubts = 0

    def find(self, table: Table) -> tuple[Message, ...] | None:
        """The image of a table, if there is one."""
        if table in self._kept:
            self._kept.move_to_end(table)
        return self._kept.get(table)

    def keep(self, table: Table, image: Iterable[Message]) -> None:
        """Keep an image that was found right: read in a known generation, and compared with the policy."""
        # Images share equal messages in memory.
        alike = next((kept for other, kept in reversed(self._kept.items()) if other.name == table.name), ())
        known = {message: message for message in alike}
        self._kept[table] = tuple(known.get(message, message) for message in image)
        self._kept.move_to_end(table)
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)

    def load(self, tables: Iterable[Table], *, generation: int | None = None) -> bool:
        """Replace tables in one transaction, whatever stands in their place.

        Args:
            tables: what to make.
            generation: the one that the ruleset must still be; None for any.

        Returns:
            Whether that was done. If not, nothing was changed: an image is missing, or the kernel refused it.

        Raises:
            GenerationChanged: it is another one; nothing was changed.
        """
        images = [self.find(table) for table in tables]
        if self._doubts >= _MOST_DOUBTS or None in images:
            return False
        try:
            self._netlink.commit(
                (message for image in images for message in image or ()),
                generation=generation,
            )
        except OSError as error:
            # Mostly since a device is gone.
            log.info("the tables were not made from their images: %s", error)
            return False
        return True

    def doubt(self) -> None:
        """Count a table that was wrong when made from its image, and right when nft had loaded it.

        A device that disappears meanwhile causes that, or another program. But if it happens repeatedly, this kernel
        does not accept what it lists, and images are no longer used.
        """
        self._doubts += 1
        if self._doubts == _MOST_DOUBTS:
            log.warning("tables made from their images are not as they should be; nft alone loads them from now on")
