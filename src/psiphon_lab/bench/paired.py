# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The statistics of measurements that were taken in turn: median, spread, and how sure a ratio or difference is. Pure.

The interval of a median is the one of the sign test: the narrowest pair of order statistics that contains the median of
the population with the wanted confidence. It assumes nothing about the distribution, and few rounds make it wide.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

CONFIDENCE: Final = 0.95
LEAST_CONFIDENCE: Final = 0.9
"""What is less sure than this decides nothing: fewer than five rounds."""


class Comparison(StrEnum):
    """How two sides are compared."""

    RATIO = "ratio"
    DIFFERENCE = "difference"

    @property
    def same(self) -> float:
        """What it is when both sides are the same."""
        return 1.0 if self is Comparison.RATIO else 0.0


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Where a median lies. confidence: the probability that it does, at least; few rounds give less than wanted."""

    low: float
    high: float
    confidence: float

    def contains(self, value: float) -> bool:
        """Whether a value is inside."""
        return self.low <= value <= self.high


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Median and quartiles of some values."""

    median: float
    low: float
    high: float


def describe_spread(values: Sequence[float]) -> Spread:
    """Median and quartiles. Raises ValueError if there is no value."""
    if not values:
        raise ValueError("no values")
    if len(values) == 1:
        return Spread(median=values[0], low=values[0], high=values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median=median, low=low, high=high)


def find_interval(values: Sequence[float], *, confidence: float = CONFIDENCE) -> Interval:
    """Where the median of the population lies, from a sample. Raises ValueError if there is no value.

    If even the whole range is less sure than wanted (five values or fewer for 95 %), it is the whole range, with the
    confidence that it has.
    """
    ordered = sorted(values)
    count = len(ordered)
    if not count:
        raise ValueError("no values")
    # The median is below the k-th smallest of n values with the probability of fewer than k heads in n throws.
    outside, cut = 0.0, 0
    tail = 0.5**count
    below = tail
    while cut < (count - 1) // 2 and 2 * (below + math.comb(count, cut + 1) * tail) <= 1 - confidence:
        cut += 1
        below += math.comb(count, cut) * tail
    outside = 2 * below
    return Interval(low=ordered[cut], high=ordered[count - 1 - cut], confidence=max(0.0, 1 - outside))


def compare_rounds(base: Sequence[float], other: Sequence[float], comparison: Comparison) -> list[float]:
    """The other side beside the base, round by round. Raises ValueError if a round lacks a side, or a base is 0."""
    if len(base) != len(other):
        raise ValueError("not the same number of rounds")
    if comparison is Comparison.DIFFERENCE:
        return [there - here for here, there in zip(base, other, strict=True)]
    if not all(base):
        raise ValueError("nothing can be a multiple of 0")
    return [there / here for here, there in zip(base, other, strict=True)]


def is_below_noise(interval: Interval, same: float) -> bool:
    """Whether a comparison cannot be told from "the same": its interval contains it, or is not sure enough."""
    return interval.contains(same) or interval.confidence < LEAST_CONFIDENCE


class Verdict(StrEnum):
    """Whether a goal is met."""

    MET = "met"
    MISSED = "missed"
    OPEN = "not decided"


def judge_goal(interval: Interval, goal: float, *, at_least: bool) -> Verdict:
    """Whether a goal is met by the whole interval, missed by the whole interval, or not decided by so many rounds."""
    if interval.confidence < LEAST_CONFIDENCE:
        return Verdict.OPEN
    good, bad = (interval.low, interval.high) if at_least else (-interval.high, -interval.low)
    bound = goal if at_least else -goal
    if good >= bound:
        return Verdict.MET
    return Verdict.MISSED if bad < bound else Verdict.OPEN
