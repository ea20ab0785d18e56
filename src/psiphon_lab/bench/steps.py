# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What a family of measurements is: steps with an estimate of their time, which add rounds to a report."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from psiphon_lab.bench.model import Report, Title
from psiphon_lab.bench.sides import Bare, Side, Sides, open_bare, open_sides
from psiphon_lab.tunnel_ends import RealPrograms

ROUNDS = 9
"""The narrowest number for which the interval of 95 % leaves out the extremes."""
QUICK_ROUNDS = 2


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the user wants. rounds: of each figure. quick: few points, short loads."""

    rounds: int = ROUNDS
    quick: bool = False
    real: RealPrograms | None = None


class Bench:
    """What steps work with. A context manager: what they opened ends with it."""

    def __init__(self, settings: Settings, report: Report) -> None:
        self.settings = settings
        self.report = report
        self._stack = contextlib.ExitStack()
        self._sides: Sides | None = None
        self._twin: Bare | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def sides(self) -> Sides:
        """Both sides, opened by the first step that needs them."""
        if self._sides is None:
            self._sides = self._stack.enter_context(open_sides(self.settings.real))
        return self._sides

    @property
    def twin(self) -> Bare:
        """A second bare core, for the control."""
        if self._twin is None:
            self._twin = self._stack.enter_context(open_bare(self.settings.real))
        return self._twin

    def close_sides(self) -> None:
        """End what is open, so that the next step has new ones: after a failure, or at the end of a family."""
        self._sides = self._twin = None
        self._stack.close()

    def take_turns(self, number: int, measure: Callable[[Side], dict[str, float]], titles: dict[str, Title]) -> None:
        """Measure both sides one after the other, the bare core first in every other round, and add what they gave.

        Args:
            number: of the round.
            measure: returns values by name.
            titles: by the same names.
        """
        sides = self.sides
        first, second = (sides.bare, sides.product) if number % 2 == 0 else (sides.product, sides.bare)
        found = {id(first): measure(first)}
        found[id(second)] = measure(second)
        for name, title in titles.items():
            self.report.add(title, found[id(sides.bare)][name], found[id(sides.product)][name])


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step. seconds: about how long it takes."""

    name: str
    seconds: float
    run: Callable[[Bench], None]


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family of measurements. plan: its steps. apart: whether it needs new worlds, and leaves used ones behind."""

    name: str
    summary: str
    plan: Callable[[Settings], list[Step]] = field(repr=False)
    apart: bool = False
