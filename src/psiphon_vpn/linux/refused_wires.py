# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Wires for which the kernel refused an egress guard: they cost no load of the rules again, and are tried before long.

A wire is known by name and index: another device under the name is another wire. One that is gone is forgotten.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from socket import if_nametoindex
from typing import Final, TypeVar

from psiphon_vpn.linux.clocks import read_running

FIRST_SECONDS: Final = 5.0
LAST_SECONDS: Final = 300.0
"""How long a wire that was refused is left alone, doubled each time."""

Name = TypeVar("Name", bound=str)


def find_index(name: str) -> int | None:
    """The index of an interface, None where there is none."""
    try:
        return if_nametoindex(name)
    except OSError:
        return None


def find_indexes(names: Collection[str]) -> dict[str, int]:
    """The indexes of those that are there."""
    return {name: index for name in names if (index := find_index(name)) is not None}


@dataclass
class _Refusal:
    index: int
    again_at: float
    pause: float = FIRST_SECONDS


class RefusedWires:
    """Which wires were refused, and when they are tried again.

    Args:
        find: the index of an interface by name.
        clock: seconds, of a clock that only goes forward.
    """

    def __init__(
        self, *, find: Callable[[str], int | None] = find_index, clock: Callable[[], float] = read_running
    ) -> None:
        self._find = find
        self._clock = clock
        self._refused: dict[str, _Refusal] = {}

    def _forget_others(self) -> None:
        for name, refusal in tuple(self._refused.items()):
            if self._find(name) != refusal.index:
                del self._refused[name]

    def leave_out(self, wires: Sequence[Name], *, keep: Collection[str] = ()) -> tuple[Name, ...]:
        """The wires without those that were refused.

        Args:
            wires: all of them.
            keep: those that are tried in any case: nothing is opened without their guard.
        """
        self._forget_others()
        return tuple(name for name in wires if name in keep or name not in self._refused)

    def note(self, asked: Mapping[str, int], guarded: Collection[str]) -> None:
        """What a load made of the wires that it was to guard.

        Args:
            asked: their indexes as they were before it. One that was another, or gone, meanwhile was not refused.
            guarded: those that have a guard now.
        """
        for name, index in asked.items():
            if name in guarded:
                self._refused.pop(name, None)
            elif self._find(name) == index and name not in self._refused:
                self._refused[name] = _Refusal(index, self._clock() + FIRST_SECONDS)

    @property
    def wait(self) -> float | None:
        """Seconds until one of them is to be tried again; None where there is none. The kernel is not asked."""
        if not self._refused:
            return None
        return max(0.0, min(refusal.again_at for refusal in self._refused.values()) - self._clock())

    def take_due(self) -> frozenset[str]:
        """Those that are to be tried now. Unless `note` says that one is guarded, it is left alone for longer."""
        self._forget_others()
        now = self._clock()
        due = {name: refusal for name, refusal in self._refused.items() if refusal.again_at <= now}
        for refusal in due.values():
            refusal.pause = min(LAST_SECONDS, refusal.pause * 2)
            refusal.again_at = now + refusal.pause
        return frozenset(due)
