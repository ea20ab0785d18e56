"""Which card has which filter of traffic control: it belongs to its guard, comes after it and goes before it."""

import contextlib
import logging
from collections.abc import Collection, Sequence
from socket import if_indextoname, if_nametoindex

from psiphon_vpn.linux.traffic import Standing, Traffic, TrafficKernel
from psiphon_vpn.policy import names
from psiphon_vpn.policy.model import Policy
from psiphon_vpn.policy.ruleset import Table
from psiphon_vpn.policy.traffic_control import Filter

log = logging.getLogger(__name__)


def _find_indexes(wires: Sequence[str]) -> dict[int, str]:
    """The wires that are there, by index."""
    found = {}
    for name in wires:
        with contextlib.suppress(OSError):
            found[if_nametoindex(name)] = name
    return found


def _find_renamed(cards: dict[int, str]) -> dict[int, str]:
    """Those that have another name by now, with the one before.

    Since Linux 6.16 a guard goes with its card's name. The filter stays until the links were looked at, and the card
    has another guard: so nothing leaves by it meanwhile.
    """
    found = {}
    for index, name in cards.items():
        with contextlib.suppress(OSError):
            if if_indextoname(index) != name:
                found[index] = name
    return found


class CardFilters:
    """The filters of the cards. They open nothing, and none that fails costs more than itself.

    Args:
        kernel: what is asked; None where it knows no such filter.
    """

    def __init__(self, kernel: TrafficKernel | None) -> None:
        self._traffic = Traffic(kernel) if kernel is not None else None
        self._cards: dict[int, str] = {}
        """The cards that have a filter, or ought to, by index."""
        self.odd_wires: tuple[str, ...] = ()
        """Wires whose names stand in no rule: a filter knows its card by index."""

    async def shed(self, policy: Policy, beside: Sequence[Table]) -> None:
        """Before a card loses its egress guard it loses the filter that asks for that guard's mark.

        Args:
            policy: that is about to be in force.
            beside: its tables beside the base table.
        """
        if self._traffic is None or not self._knows_wires(policy):
            return
        guarded = [name for table in beside if table.name == names.EGRESS_TABLE for name in table.devices]
        try:
            await self._traffic.shed({**_find_indexes(guarded), **_find_renamed(self._cards)})
        except OSError as error:
            # The lock comes first. A card that is cut off by it is closed, and looked at again below.
            log.warning("a filter of traffic control could not be taken away: %s", error)

    def _knows_wires(self, policy: Policy) -> bool:
        """Not at the start, before the links were looked at: what a daemon before us put up stands until then."""
        return self._traffic is not None and (self._traffic.looked or bool(policy.links.wires) or bool(self.odd_wires))

    async def fit(self, policy: Policy, guarded: Collection[str]) -> bool:
        """Put the filters to the guards that were just read back.

        Args:
            policy: in force.
            guarded: names of the cards on which the egress guard stands.

        Returns:
            Whether anything had to be done.
        """
        if self._traffic is None or not self._knows_wires(policy):
            return False
        cards = _find_indexes((*policy.links.wires, *self.odd_wires))
        wanted = {i: Filter.MARKED if name in guarded else Filter.SOURCES for i, name in cards.items()}
        for index, name in _find_renamed(self._cards).items():
            stands = self._traffic.standings.get(index, Standing()).filter
            if index not in cards and stands is not None:
                cards[index], wanted[index] = name, stands
        self._cards = cards
        try:
            return await self._traffic.fit(wanted)
        except OSError as error:
            log.warning("the filters of traffic control could not be looked at: %s", error)
            return False

    def doubt(self, index: int | None) -> bool:
        """Somebody changed traffic control at an interface, or nobody knows where; whether that may concern ours."""
        if self._traffic is None or not (index is None or self._traffic.concerns(index)):
            return False
        self._traffic.doubt()
        return True

    @property
    def standings(self) -> tuple[tuple[str, Standing], ...]:
        """What stood at the traffic control of each wire when it was last looked at."""
        if self._traffic is None:
            return ()
        found = self._traffic.standings
        return tuple((name, found.get(index, Standing())) for index, name in self._cards.items())
