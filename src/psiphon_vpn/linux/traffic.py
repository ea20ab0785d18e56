# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Our filter at the traffic control of each card: added, read back, and removed.

Its handle identifies it. There are two handles: the kernel does not record who made a `clsact`, so the handle says
whether it was there before our filter. Other programs' filters are never touched, and a `clsact` is removed only if it
is ours and empty.

A filter that requires the mark must not outlive the guard that sets it, or nothing leaves by that card. So it is added
after the guard was read back, and removed before the guard is (`Traffic.shed`). While the guards do not load, or the
links have changed since the policy was made, every filter stays: a card that is cut off for a moment is closed.
"""

import asyncio
import contextlib
import enum
import errno
import logging
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from psiphon_vpn.i18n import _
from psiphon_vpn.linux.rtnetlink import NLM_F_CREATE, NLM_F_EXCL, RouteSocket, list_all
from psiphon_vpn.linux.tcvalues import (
    BPF,
    CLSACT,
    EGRESS,
    EVERY_PROTOCOL,
    INGRESS,
    RTM_DELQDISC,
    RTM_DELTFILTER,
    RTM_GETQDISC,
    RTM_GETTFILTER,
    RTM_NEWQDISC,
    RTM_NEWTFILTER,
    TCMSG,
    Place,
    TcFilter,
    decode_filter,
    decode_place,
    encode_filter,
    encode_filter_removal,
    encode_place,
)
from psiphon_vpn.policy import names
from psiphon_vpn.policy.traffic_control import ASK_NOTHING, Filter, build_program, encode_program
from psiphon_vpn.policy.values import show_name

log = logging.getLogger(__name__)

HANDLE, HANDLE_IN_OWN_PLACE = 0x50530001, 0x50530002
"""Of our filter: beside a `clsact` that was there before, and in one that was made for it."""
TRIAL_HANDLE = 0x50530003
OWN_HANDLES: Final = frozenset({HANDLE, HANDLE_IN_OWN_PLACE})
PROGRAMS: Final = {kind: encode_program(build_program(kind)) for kind in Filter}
Request = tuple[int, int, bytes]
"""Type (RTM_*), flags (NLM_F_*) and body."""
_REFUSALS: Final = frozenset(
    {errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.ENOSYS, errno.ENOENT, errno.EINVAL, errno.EPERM, errno.EACCES}
)
"""The kernel's answers where it has no traffic control, no such filter, or lets nobody here use it. Every other error
is of this moment: another program was faster (EEXIST), or memory was short."""
_GONE: Final = frozenset({errno.ENODEV, errno.ENOENT, errno.EINVAL})
"""The kernel's answers to a removal if interface, `clsact` or filter are gone."""


class TrafficKernel(Protocol):
    """The kernel's traffic control, as `Traffic` uses it."""

    async def list_places(self) -> tuple[Place, ...]:
        """What stands at `ffff:`, for every interface with something there. Raises OSError."""

    async def list_filters(self, index: int, parent: int) -> tuple[TcFilter, ...]:
        """The filters of an interface in the order in which they run. Raises OSError."""

    def change(self, requests: Collection[Request]) -> list[int]:
        """Make changes in one write. Returns 0 or an error number for each. Raises OSError."""


class NetlinkTraffic:
    """The kernel itself.

    Args:
        socket: by which changes are made, so that their announcements are recognised as our own.
    """

    def __init__(self, socket: RouteSocket) -> None:
        self._socket = socket

    async def list_places(self) -> tuple[Place, ...]:
        """RTM_GETQDISC. Empty on a kernel without traffic control."""
        try:
            return await list_all(RTM_GETQDISC, TCMSG.pack(0, 0, 0, 0, 0), decode_place)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                return ()
            raise

    async def list_filters(self, index: int, parent: int) -> tuple[TcFilter, ...]:
        """RTM_GETTFILTER."""
        return await list_all(RTM_GETTFILTER, TCMSG.pack(0, index, 0, parent, 0), decode_filter)

    def change(self, requests: Collection[Request]) -> list[int]:
        """One write: if this process is killed, it is before all changes or after all."""
        return self._socket.change_all(requests)


class Obstacle(enum.StrEnum):
    """Why there is no filter on a card."""

    INGRESS = "ingress"
    """A queueing discipline `ingress` stands in the place of `clsact`."""
    SHARED = "shared"
    """The card shares its filters with other cards (blocks of tc(8))."""
    REFUSED = "refused"
    """The kernel refused it, or accepted it and does not have it."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What stands at a card's traffic control.

    Attributes:
        filter: ours; None if there is none.
        obstacle: why there is none.
        detail: the kernel's error.
        after_others: another program's filter runs before ours, and may accept what ours would drop.
    """

    filter: Filter | None = None
    obstacle: Obstacle | None = None
    detail: str = ""
    after_others: bool = False


def find_own(filters: Collection[TcFilter]) -> list[TcFilter]:
    """Our filters among these."""
    return [found for found in filters if found.kind == BPF and found.handle in OWN_HANDLES]


def judge(filters: Collection[TcFilter]) -> Standing:
    """Judge a card's egress filters, ours and others'."""
    listed = [found for found in filters if found.handle and not found.chain]
    own = find_own(listed)
    if not own:
        return Standing()
    first = own[0]
    kinds = [kind for kind, program in PROGRAMS.items() if first.program == program and first.direct]
    return Standing(filter=kinds[0] if kinds else None, after_others=listed[0] is not first)


def explain_filter(standing: Standing) -> str | None:
    """What is missing at a card's traffic control; None if nothing is."""
    match standing.obstacle:
        case Obstacle.INGRESS:
            return _("no filter, since another program has a queueing discipline 'ingress' in its place")
        case Obstacle.SHARED:
            return _("no filter, since another program shares the filters of this card with other cards")
        case Obstacle.REFUSED:
            return _("no filter: the kernel does not take it ({reason})").format(reason=standing.detail or "-")
    if standing.filter is None:
        return _("no filter")
    if standing.after_others:
        return _("a filter of another program is asked before ours")
    if standing.filter is not Filter.MARKED:
        return _("addresses alone are looked at, since no guard stands there that marks")
    return None


def explain_cut_off(cards: Collection[str]) -> str:
    """Why nothing leaves by the interfaces of these names: the filter is there, and its guard is not."""
    sentence = _("nothing leaves by {names}: the filter there drops all that no egress guard marks, and none is there")
    return sentence.format(names=", ".join(map(show_name, cards)))


def choose_preference(filters: Collection[TcFilter]) -> int:
    """The first that is free, or whose filters the kernel accepts ours beside."""
    taken = {found.preference: (found.kind, found.protocol) for found in filters if not found.chain}
    preference = 1
    while taken.get(preference, (BPF, EVERY_PROTOCOL)) != (BPF, EVERY_PROTOCOL):
        preference += 1
    return preference


class Traffic:
    """Our filters. The owner calls one method at a time."""

    def __init__(self, kernel: TrafficKernel) -> None:
        self._kernel = kernel
        self._wanted: dict[int, Filter] = {}
        self._dirty = True
        """Whether something may have changed since it was left."""
        self.looked = False
        """Whether all interfaces were read once: an earlier daemon may have left filters anywhere."""
        self.standings: dict[int, Standing] = {}
        """What stood at each card when it was last read, by index. Replaced, never changed."""

    def doubt(self) -> None:
        """Somebody changed something."""
        self._dirty = True

    async def shed(self, keep: Collection[int]) -> None:
        """Remove the filters that require the mark from cards that lose the guard which sets it.

        Args:
            keep: indexes of the cards whose guard stays, or is about to be loaded.

        Raises:
            OSError: the kernel does not answer, or refused.
        """
        if self.looked:
            known = {index for index, kind in self._wanted.items() if kind is Filter.MARKED}
        else:
            known = {place.index for place in await self._kernel.list_places() if place.kind == CLSACT}
        for index in known - set(keep):
            filters = await self._kernel.list_filters(index, EGRESS)
            if judge(filters).filter is not Filter.SOURCES:
                await self._remove(index, filters)
                self._wanted.pop(index, None)
                self._dirty = True

    async def fit(self, wanted: Mapping[int, Filter], *, keep_others: bool = False) -> bool:
        """Make these our filters, and remove any other filter of ours.

        Args:
            wanted: by index of the card.
            keep_others: leave our filters on other cards as they are.

        Returns:
            Whether somebody had changed what was left there.

        Raises:
            OSError: the kernel does not list them. What it refuses is in `standings`.
        """
        if keep_others:
            wanted = {**self._wanted, **wanted}
        if not self._dirty and self._wanted == dict(wanted):
            return False
        # Before reading: what changes from here on is announced, and read again.
        self._dirty = False
        try:
            return await self._fit(wanted, keep_others=keep_others)
        except BaseException:
            self._dirty = True
            raise

    async def _fit(self, wanted: Mapping[int, Filter], *, keep_others: bool) -> bool:
        places = {place.index: place.kind for place in await self._kernel.list_places()}
        others = set() if keep_others else set(self._wanted) if self.looked else set(places)
        done = False
        for index in others - set(wanted):
            if places.get(index) == CLSACT:
                await self._remove(index, await self._kernel.list_filters(index, EGRESS))
        standings = {}
        for index, kind in wanted.items():
            standings[index], changed = await self._fit_one(index, kind, places.get(index))
            done = done or (changed and self._wanted.get(index) is kind)
        self.standings, self._wanted = standings, dict(wanted)
        # Filters of an earlier daemon that were kept still have to be found.
        self.looked = self.looked or not keep_others
        return done

    async def remove(self) -> None:
        """Remove all our filters, wherever they are.

        Raises:
            OSError: the kernel does not answer, or refused: a filter may still be there.
        """
        for place in await self._kernel.list_places():
            if place.kind == CLSACT:
                await self._remove(place.index, await self._kernel.list_filters(place.index, EGRESS))
        self._wanted, self.standings, self._dirty = {}, {}, True

    async def _fit_one(self, index: int, kind: Filter, place: str | None) -> tuple[Standing, bool]:
        if place not in {None, CLSACT}:
            return Standing(obstacle=Obstacle.INGRESS, detail=place or ""), False
        filters = await self._kernel.list_filters(index, EGRESS) if place is not None else ()
        own, now = find_own(filters), judge(filters)
        if len(own) == 1 and now.filter is kind:
            return now, False
        requests: list[Request] = []
        if place is None:
            requests.append((RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, encode_place(index)))
        handle = own[0].handle if own else HANDLE if place is not None else HANDLE_IN_OWN_PLACE
        preference = own[0].preference if own else choose_preference(filters)
        body = encode_filter(index, handle, preference, PROGRAMS[kind])
        requests.append((RTM_NEWTFILTER, NLM_F_CREATE | (0 if own else NLM_F_EXCL), body))
        requests += [(RTM_DELTFILTER, 0, encode_filter_removal(more)) for more in own[1:]]
        refused = next((number for number in self._kernel.change(requests) if number), 0)
        now = judge(await self._kernel.list_filters(index, EGRESS))
        if now.filter is kind:
            return now, True
        obstacle = Obstacle.SHARED if refused == errno.EOPNOTSUPP else Obstacle.REFUSED
        return Standing(obstacle=obstacle, detail=os.strerror(refused) if refused else ""), False

    async def _remove(self, index: int, filters: Collection[TcFilter]) -> None:
        own = find_own(filters)
        if not own:
            return
        requests: list[Request] = [(RTM_DELTFILTER, 0, encode_filter_removal(found)) for found in own]
        if any(found.handle == HANDLE_IN_OWN_PLACE for found in own):
            left = [found for found in filters if found.handle and found not in own]
            if not left and not await self._kernel.list_filters(index, INGRESS):
                # The filter goes with it: at no moment does it stand without the handle that says it is ours.
                requests = [(RTM_DELQDISC, 0, encode_place(index))]
        for number in self._kernel.change(requests):
            if number and number not in _GONE:
                raise OSError(number, os.strerror(number))


async def can_filter(kernel: TrafficKernel | None = None) -> bool:
    """Whether this kernel accepts such a filter: tried at the egress of loopback, with one that lets everything pass.

    Made and removed in one write; a `clsact` that was needed for it is removed in the next.

    Args:
        kernel: None for this machine's.

    Raises:
        OSError: the try was disturbed. What this kernel can do is not known.
    """
    if kernel is not None:
        return await _try(kernel)
    with contextlib.closing(RouteSocket()) as socket:
        return await _try(NetlinkTraffic(socket))


async def _try(kernel: TrafficKernel) -> bool:
    try:
        answers = await _make_and_remove(kernel)
    except OSError as error:
        answers = [error.errno or errno.EIO]
    for number in filter(None, answers):
        if number not in _REFUSALS:
            raise OSError(number, os.strerror(number))
    return not any(answers)


async def _make_and_remove(kernel: TrafficKernel) -> list[int]:
    """The kernel's answers: 0 or an error number for each step."""
    index = names.LOOPBACK_INDEX
    place = next((found.kind for found in await kernel.list_places() if found.index == index), None)
    if place not in {None, CLSACT}:
        return []  # it cannot be tried here; each card will show it
    filters = await kernel.list_filters(index, EGRESS) if place else ()
    preference = choose_preference(filters)
    program = encode_program(ASK_NOTHING)
    tried = TcFilter(
        index=index, parent=EGRESS, preference=preference, protocol=EVERY_PROTOCOL, kind=BPF, handle=TRIAL_HANDLE
    )
    left = [found for found in filters if found.kind == BPF and found.handle == TRIAL_HANDLE]  # by a disturbed try
    requests: list[Request] = [
        *((RTM_DELTFILTER, 0, encode_filter_removal(found)) for found in left),
        (RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_EXCL, encode_filter(index, TRIAL_HANDLE, preference, program)),
        (RTM_DELTFILTER, 0, encode_filter_removal(tried)),
    ]
    if place is None:
        requests.insert(0, (RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, encode_place(index)))
    answers = kernel.change(requests)
    if place is None and not answers[0]:
        others = [found for parent in (EGRESS, INGRESS) for found in await kernel.list_filters(index, parent)]
        if not others:
            kernel.change([(RTM_DELQDISC, 0, encode_place(index))])
    return answers


def remove_filters() -> None:
    """Remove all our filters, for callers without an event loop: before the guards that set the mark are removed.

    Raises:
        OSError: the kernel does not answer, or refused: a filter may still be there.
    """

    async def remove() -> None:
        with contextlib.closing(RouteSocket()) as socket:
            await Traffic(NetlinkTraffic(socket)).remove()

    asyncio.run(remove())


async def read_standings() -> dict[int, Standing]:
    """What stands at the traffic control of each interface with a `clsact`, or something in its place, by index.

    Raises:
        OSError: the kernel does not answer.
    """
    with contextlib.closing(RouteSocket()) as socket:
        kernel = NetlinkTraffic(socket)
        return {
            place.index: judge(await kernel.list_filters(place.index, EGRESS))
            if place.kind == CLSACT
            else Standing(obstacle=Obstacle.INGRESS, detail=place.kind)
            for place in await kernel.list_places()
        }
