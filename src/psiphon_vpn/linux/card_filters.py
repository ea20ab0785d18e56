# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Which card has which filter of traffic control. A filter is added after its guard and removed before it."""

import contextlib
import logging
from collections.abc import Collection, Mapping, Sequence
from socket import if_indextoname, if_nametoindex

from psiphon_vpn.linux.traffic import Standing, Traffic, TrafficKernel
from psiphon_vpn.policy.model import Policy
from psiphon_vpn.policy.traffic_control import Filter

log = logging.getLogger(__name__)


def _find_indexes(wires: Sequence[str]) -> dict[int, str]:
    """The existing ones among these wires, by index."""
    found = {}
    for name in wires:
        with contextlib.suppress(OSError):
            found[if_nametoindex(name)] = name
    return found


def _find_renamed(cards: dict[int, str]) -> dict[int, str]:
    """The cards that were renamed, with their former names.

    Since Linux 6.16 a guard disappears when its card is renamed. The filter stays until the links were read and the
    card has a new guard, so nothing leaves by it meanwhile.
    """
    found = {}
    for index, name in cards.items():
        with contextlib.suppress(OSError):
            if if_indextoname(index) != name:
                found[index] = name
    return found


class CardFilters:
    """The filters of the cards. They open nothing, and the failure of one does not affect the others.

    Args:
        kernel: its traffic control; None if it does not accept such a filter.
    """

    def __init__(self, kernel: TrafficKernel | None) -> None:
        self._traffic = Traffic(kernel) if kernel is not None else None
        self.cards: dict[int, str] = {}
        """Names of the cards that should have a filter, by index. Replaced, never changed."""
        self.odd_wires: tuple[str, ...] = ()
        """Names of wires that no rule can name. A filter identifies its card by index."""

    async def shed(self, policy: Policy) -> None:
        """Remove the filter from each card that is no wire any more, before it loses the guard that sets the mark.

        Args:
            policy: that is about to be in force. If it names a wire that does not exist, the links have changed since,
                and nobody knows which card it means: every filter stays.
        """
        if self._traffic is None or not self._knows_wires(policy):
            return
        cards, stale = self._find_cards(policy)
        if stale:
            return
        try:
            await self._traffic.shed({**cards, **_find_renamed(self.cards)})
        except OSError as error:
            # The lock comes first. A card that this cuts off is closed, and `fit` tries again.
            log.warning("a filter of traffic control could not be removed: %s", error)

    def _knows_wires(self, policy: Policy) -> bool:
        """False until the links were read after the start: an earlier daemon's filters stay until then."""
        return self._traffic is not None and (self._traffic.looked or bool(policy.links.wires) or bool(self.odd_wires))

    def _find_cards(self, policy: Policy) -> tuple[dict[int, str], bool]:
        """The policy's wires by index, and whether one of them does not exist: the links have changed since."""
        wires = {*policy.links.wires, *self.odd_wires}
        cards = _find_indexes(tuple(wires))
        return cards, len(cards) < len(wires)

    async def fit(self, policy: Policy, guarded: Collection[str], *, loaded: bool = True) -> bool:
        """Make the filters fit the guards that were just read back.

        Args:
            policy: in force.
            guarded: names of the cards on which the egress guard stands.
            loaded: whether the guards loaded. If not, no filter goes, and none becomes weaker.

        Returns:
            Whether anything had to be done.
        """
        if self._traffic is None or not self._knows_wires(policy):
            return False
        cards, stale = self._find_cards(policy)
        wanted = {i: Filter.MARKED if name in guarded else Filter.SOURCES for i, name in cards.items()}
        for index, name in _find_renamed(self.cards).items():
            stands = self._traffic.standings.get(index, Standing()).filter
            if index not in cards and stands is not None:
                cards[index], wanted[index] = name, stands
        self.cards = cards
        try:
            return await self._traffic.fit(wanted, keep_others=stale or not loaded)
        except OSError as error:
            log.warning("the filters of traffic control could not be read: %s", error)
            return False

    def doubt(self) -> None:
        """Another program changed traffic control, at a card or at an unknown place: the next `fit` reads it."""
        if self._traffic is not None:
            self._traffic.doubt()

    @property
    def standings(self) -> Mapping[int, Standing]:
        """What stood at the traffic control of each card when it was last read, by index."""
        return self._traffic.standings if self._traffic is not None else {}
