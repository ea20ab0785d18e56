"""Images of the tables that were found right lately, and their loading."""

import logging
import operator
import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping
from types import MappingProxyType

from psiphon_vpn.linux.nfnetlink import Message, NftSocket
from psiphon_vpn.linux.nftimage import are_equal, read_image
from psiphon_vpn.linux.proof import find_difference
from psiphon_vpn.policy.ruleset import Table

log = logging.getLogger(__name__)

_KEPT = 6
"""A machine that goes to and fro between two networks needs so many; each takes some ten kilobytes."""
_MOST_DOUBTS = 3


class Images:
    """What was loaded once by nft and found right is loaded again in about a millisecond, by a message of our own.

    Args:
        netlink: a socket for it.
        is_equal: whether a later generation differs from one in nothing that matters.
    """

    def __init__(self, netlink: NftSocket, is_equal: Callable[[int, int], bool] = operator.eq) -> None:
        self._netlink = netlink
        self._is_equal = is_equal
        self._kept: OrderedDict[tuple[Table, ...], tuple[Message, ...]] = OrderedDict()
        self._doubts = 0

    def take(
        self, tables: tuple[Table, ...], generation: int, *, copies: Mapping[Table, str] = MappingProxyType({})
    ) -> None:
        """Take the image of tables that were found right in this generation; nothing where there is one.

        Args:
            tables: they stand, unless a copy is named.
            generation: the one in which they were found right.
            copies: names of dormant copies that stand instead.
        """
        if self._doubts >= _MOST_DOUBTS or tables in self._kept:
            return
        try:
            which = [(table.family, copies.get(table, table.name), table.name) for table in tables]
            image = read_image(self._netlink, which, generation=generation, is_equal=self._is_equal)
        except (OSError, ValueError, LookupError, struct.error) as error:
            # Also a listing in a form that is not known here: nft loads the tables then.
            log.info("no image of the tables: %s", error)
            return
        if image is not None and (wrong := find_difference(image, tables)) is not None:
            log.info("no image of the tables: %s", wrong)
        elif image is not None:
            self.keep(tables, image)

    def keep(self, tables: tuple[Table, ...], image: tuple[Message, ...]) -> None:
        """Keep an image that was found right: against the policy too (`find_difference`)."""
        if self._doubts < _MOST_DOUBTS:
            self._kept[tables] = image
            self._kept.move_to_end(tables)
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)

    def load(self, tables: tuple[Table, ...]) -> bool:
        """Make tables anew in one transaction, whatever stands in their place.

        Returns:
            Whether that was done. If not, nothing was changed: there is no image, or the kernel refused it.
        """
        image = self._kept.get(tables)
        if image is None:
            return False
        self._kept.move_to_end(tables)
        try:
            self._netlink.commit(image)
        except OSError as error:
            # A device that is gone, mostly.
            log.info("the tables were not made from their image: %s", error)
            return False
        return True

    def read_back(self, tables: tuple[Table, ...]) -> int | None:
        """Whether the kernel lists tables now as it did when they were found right and their image was taken.

        No weaker than nft's word, which is made of nothing but this list.

        Returns:
            The generation in which it does; None when it does not, or has changed meanwhile: ask nft.
        """
        image = self._kept.get(tables)
        try:
            generation = self._netlink.read_generation()
            which = [(table.family, table.name, table.name) for table in tables]
            found = read_image(self._netlink, which, generation=generation, is_equal=self._is_equal)
        except (OSError, ValueError, LookupError, struct.error) as error:
            log.info("what was made from an image cannot be listed: %s", error)
            return None
        return generation if image and found and are_equal(image, found) else None

    def doubt(self) -> None:
        """What was made from an image read back otherwise, and was right once nft had loaded it.

        A device that went in between does that, or another program. But when it happens again and again, this kernel
        does not take what it lists, and no image is used any more.
        """
        self._doubts += 1
        if self._doubts == _MOST_DOUBTS:
            log.warning("tables made from their images are not as they should be; nft alone loads them from now on")
            self._kept.clear()
