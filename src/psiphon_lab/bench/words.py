# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Figures in words, for a terminal, a page and a document. Pure."""

from __future__ import annotations

from psiphon_lab.bench.growth import Fit, Shape
from psiphon_lab.bench.model import Figure, Goal, Growth, Title
from psiphon_lab.bench.paired import Comparison, Interval, describe_spread, find_interval


def show_number(value: float, *, sign: bool = False) -> str:
    """About three digits, without an exponent."""
    size = abs(value)
    decimals = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 or size == 0 else 3
    return f"{value:{'+' if sign else ''},.{decimals}f}"


def get_interval(figure: Figure) -> Interval:
    """Where the comparison lies, or the product's own value if nothing was compared."""
    return figure.compared or find_interval(figure.product)


def show_interval(figure: Figure) -> str:
    """The comparison with its interval, or the value itself."""
    interval = get_interval(figure)
    if not figure.base:
        return f"{show_number(interval.low)} to {show_number(interval.high)} {figure.title.unit}"
    if figure.title.comparison is Comparison.RATIO:
        return f"{interval.low:.3f} to {interval.high:.3f}"
    low, high = (show_number(value, sign=True) for value in (interval.low, interval.high))
    return f"{low} to {high} {figure.title.unit}"


def show_middle(figure: Figure) -> str:
    """The median of the comparison, or of the value itself."""
    if not figure.base:
        return f"{show_number(describe_spread(figure.product).median)} {figure.title.unit}"
    middle = describe_spread(figure.rounds).median
    if figure.title.comparison is Comparison.RATIO:
        return f"{middle:.3f}"
    return f"{show_number(middle, sign=True)} {figure.title.unit}"


def show_values(values: list[float]) -> str:
    """The median and, in brackets, the quartiles."""
    if not values:
        return ""
    spread = describe_spread(values)
    return f"{show_number(spread.median)} ({show_number(spread.low)} to {show_number(spread.high)})"


def show_goal(title: Title) -> str:
    """A goal; empty if there is none."""
    goal: Goal | None = title.goal
    if goal is None:
        return ""
    sign = "≥" if goal.at_least else "≤"
    if goal.absolute:
        return f"{sign} {show_number(goal.bound)} {title.unit}"
    if title.comparison is Comparison.RATIO:
        return f"{sign} {goal.bound:g}"
    return f"{sign} {show_number(goal.bound, sign=True)} {title.unit}"


def show_verdict(figure: Figure) -> str:
    """Whether the goal is met; without a goal, whether it can be told from its base at all."""
    if figure.verdict is not None:
        return str(figure.verdict)
    return "below the noise" if figure.is_noise else ""


def show_growth(growth: Growth) -> str:
    """How it grows."""
    fit: Fit = growth.fit
    numbers = sorted(growth.product)
    if fit.shape is Shape.UNKNOWN:
        return str(fit.shape)
    if fit.shape is Shape.FLAT:
        return f"flat to {numbers[-1]:,}"
    if fit.shape is Shape.LEVELS:
        return f"{fit.shape} before {numbers[-1]:,}"
    low, high = (show_small(value) for value in (fit.low, fit.high))
    unit = "times the bare core" if growth.base else growth.unit
    return f"{fit.shape}: {show_small(fit.slope)} {unit} each ({low} to {high})"


def show_small(value: float) -> str:
    """Three digits; with an exponent if it is very small."""
    return f"{value:.3g}"
