# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""How a figure grows with a number: not at all, in proportion, or more than that. Pure.

A straight line is fitted by the Theil-Sen estimator (the median of the slopes of all pairs), which a single bad round
does not move. Its interval is a bootstrap over the rounds, with a fixed seed: the same figures, the same verdict.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

RESAMPLES: Final = 400
SEED: Final = 13
LEAST_SHARE: Final = 0.10
"""Growth over the whole range by less than this share of the first value is called flat."""
LINE_POINTS: Final = 24
STEEPER: Final = 2.5
"""The slope of the last part as a multiple of the slope before it, from which on it is called steeper than linear."""


class Shape(StrEnum):
    """How it grows."""

    FLAT = "flat"
    LEVELS = "levels off"
    LINEAR = "linear"
    STEEPER = "steeper than linear"
    UNKNOWN = "not enough points"


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A straight line through the points.

    Attributes:
        base: the value at the first point.
        slope: per one; low and high are its interval.
        whole: growth over the whole range as a share of base, by the line.
    """

    shape: Shape
    base: float
    slope: float
    low: float
    high: float
    whole: float


Points = Mapping[int, Sequence[float]]
"""The rounds' values by the number that grows."""


def fit_growth(points: Points) -> Fit:
    """Fit a line and say how it grows. Raises ValueError if there is no value at some point."""
    numbers = sorted(points)
    medians = {number: statistics.median(points[number]) for number in numbers}  # StatisticsError is a ValueError
    if len(numbers) < 3:
        base = medians[numbers[0]] if numbers else 0.0
        return Fit(shape=Shape.UNKNOWN, base=base, slope=0.0, low=0.0, high=0.0, whole=0.0)
    slope = _slope(medians)
    generator = random.Random(SEED)  # noqa: S311 - no secret

    def draw(number: int) -> float:
        return statistics.median(generator.choices(points[number], k=len(points[number])))

    drawn = sorted(_slope({number: draw(number) for number in numbers}) for _ in range(RESAMPLES))
    low, high = drawn[int(RESAMPLES * 0.025)], drawn[int(RESAMPLES * 0.975)]
    base, reach = medians[numbers[0]], numbers[-1] - numbers[0]
    whole = slope * reach / base if base else (0.0 if slope == 0 else float("inf"))
    return Fit(shape=_shape(medians, low, whole), base=base, slope=slope, low=low, high=high, whole=whole)


def _shape(medians: Mapping[int, float], low: float, whole: float) -> Shape:
    if low <= 0 or whole < LEAST_SHARE:
        return Shape.FLAT
    first, before, last = sorted(medians)[0], *sorted(medians)[-2:]
    early = (medians[before] - medians[first]) / (before - first)
    late = (medians[last] - medians[before]) / (last - before)
    # Where the early part is lost in the noise it says nothing about the late one.
    seen = medians[before] - medians[first] > LEAST_SHARE * abs(medians[first])
    if seen and medians[last] - medians[before] < LEAST_SHARE * abs(medians[before]):
        return Shape.LEVELS
    return Shape.STEEPER if seen and late > STEEPER * early else Shape.LINEAR


def _slope(medians: Mapping[int, float]) -> float:
    """Theil-Sen, each pair weighted by its distance: points are powers of ten, and near ones say little."""
    numbers = sorted(medians)
    slopes = sorted(
        ((medians[right] - medians[left]) / (right - left), float(right - left))
        for position, left in enumerate(numbers)
        for right in numbers[position + 1 :]
    )
    half, passed = sum(weight for _, weight in slopes) / 2, 0.0
    for slope, weight in slopes:
        passed += weight
        if passed >= half:
            return slope
    return slopes[-1][0]


def describe_line(fit: Fit, numbers: Sequence[int]) -> list[tuple[float, float]]:
    """Points of the fitted line, close enough for an axis that is logarithmic; none if nothing was fitted."""
    if fit.shape is Shape.UNKNOWN or not numbers:
        return []
    first, last = min(numbers), max(numbers)
    across = [first * (last / first) ** (step / LINE_POINTS) for step in range(LINE_POINTS + 1)]
    return [(number, fit.base + fit.slope * (number - first)) for number in across]
