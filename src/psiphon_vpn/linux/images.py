"""Images of the tables that were found right lately: what a reading is compared with, and what loads them again."""

import logging
from collections import OrderedDict
from collections.abc import Iterable

from psiphon_vpn.linux.nfnetlink import Message, NftSocket
from psiphon_vpn.policy.ruleset import Table

log = logging.getLogger(__name__)

_KEPT = 24
"""Tables: a machine that goes to and fro between two networks needs so many. Most messages of one are in others too."""
_MOST_DOUBTS = 3


class Images:
    """What was loaded once by nft and found right is loaded again in about a millisecond, by a message of our own.

    Args:
        netlink: a socket for it.
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
        """Keep an image that was found right: read in a generation that is known, and held against the policy."""
        # In memory what two images have in common is there once.
        alike = next((kept for other, kept in reversed(self._kept.items()) if other.name == table.name), ())
        known = {message: message for message in alike}
        self._kept[table] = tuple(known.get(message, message) for message in image)
        self._kept.move_to_end(table)
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)

    def load(self, tables: Iterable[Table], *, generation: int | None = None) -> bool:
        """Make tables anew in one transaction, whatever stands in their place.

        Args:
            tables: what is made.
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
            # A device that is gone, mostly.
            log.info("the tables were not made from their images: %s", error)
            return False
        return True

    def doubt(self) -> None:
        """What was made from an image read back otherwise, and was right once nft had loaded it.

        A device that went in between does that, or another program. But when it happens again and again, this kernel
        does not take what it lists, and nothing is made from an image any more.
        """
        self._doubts += 1
        if self._doubts == _MOST_DOUBTS:
            log.warning("tables made from their images are not as they should be; nft alone loads them from now on")
