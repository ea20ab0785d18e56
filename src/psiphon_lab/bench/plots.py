# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Plots as SVG text, without scripts, fonts or addresses. Pure. Their colours come from the page's style."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

from psiphon_lab.bench.growth import Shape, describe_line
from psiphon_lab.bench.model import Figure, Growth
from psiphon_lab.bench.paired import Comparison, describe_spread
from psiphon_lab.bench.words import show_number, show_values

WIDTH, HEIGHT = 430, 240
LEFT, RIGHT, TOP, BOTTOM = 62, 30, 12, 40
BAR_WIDTH, BAR_HEIGHT = 260, 22
_Place = Callable[[float, float], tuple[float, float]]
"""Where a value at a number is drawn."""


def draw_comparison(figure: Figure) -> str:
    """A comparison on a line: its interval, its rounds, "the same", and the goal. Empty if nothing was compared."""
    interval = figure.compared
    if interval is None:
        return ""
    same, goal = figure.title.comparison.same, figure.title.goal
    marks = [same, *figure.rounds] + ([] if goal is None or goal.absolute else [goal.bound])
    low, high = min(marks), max(marks)
    reach = max(high - low, 0.1 if figure.title.comparison is Comparison.RATIO else 1.0)
    low, reach = low - 0.06 * reach, 1.12 * reach

    def place(value: float) -> str:
        return f"{(value - low) / reach * BAR_WIDTH:.1f}"

    middle = BAR_HEIGHT / 2
    parts = [f"<line class=same x1={place(same)} x2={place(same)} y1=0 y2={BAR_HEIGHT} />"]
    if goal is not None and not goal.absolute:
        parts.append(f"<line class=goal x1={place(goal.bound)} x2={place(goal.bound)} y1=0 y2={BAR_HEIGHT} />")
    parts.append(f"<line class=range x1={place(interval.low)} x2={place(interval.high)} y1={middle} y2={middle} />")
    parts += [f"<circle class=round cx={place(value)} cy={middle} r=2.5 />" for value in figure.rounds]
    center = describe_spread(figure.rounds).median
    parts.append(f"<circle class=middle cx={place(center)} cy={middle} r=4.5 />")
    return _svg(BAR_WIDTH, BAR_HEIGHT, parts, figure.title.name)


def draw_growth(growth: Growth) -> str:
    """The values by their number: that axis is logarithmic, the other begins at 0. What grows has its line too."""
    series = [("base", growth.base)] if growth.base else []
    series.append(("product", growth.product))
    numbers = sorted({number for _, points in series for number in points})
    top = max((value for _, points in series for values in points.values() for value in values), default=0.0)
    top = _round_up(top)
    last = math.log10(max(numbers[-1], 10))

    def place(number: float, value: float) -> tuple[float, float]:
        across = LEFT + math.log10(max(number, 1)) / last * (WIDTH - LEFT - RIGHT)
        return round(across, 1), round(HEIGHT - BOTTOM - value / top * (HEIGHT - TOP - BOTTOM), 1)

    parts = [*_draw_axes(numbers, top, place(1, 0), growth, last)]
    line = [place(number, max(0.0, value)) for number, value in describe_line(growth.fit, numbers)]
    # With a base, the line is that of the ratio.
    if line and not growth.base and growth.fit.shape in {Shape.LINEAR, Shape.STEEPER}:
        parts.append(f"<polyline class=fit points='{_join(line)}' />")
    for name, points in series:
        parts += _draw_series(name, points, place)
    return _svg(WIDTH, HEIGHT, parts, growth.name)


def _draw_axes(
    numbers: Sequence[int], top: float, origin: tuple[float, float], growth: Growth, last: float
) -> list[str]:
    left, bottom = origin
    parts = [
        f"<line class=axis x1={left} x2={WIDTH - RIGHT} y1={bottom} y2={bottom} />",
        f"<line class=axis x1={left} x2={left} y1={TOP} y2={bottom} />",
        f"<text x={(left + WIDTH - RIGHT) / 2} y={HEIGHT - 6} text-anchor=middle>{escape(growth.number_of)}</text>",
    ]
    for step in range(5):
        value = top * step / 4
        height = round(bottom - (bottom - TOP) * step / 4, 1)
        parts.append(f"<line class=grid x1={left} x2={WIDTH - RIGHT} y1={height} y2={height} />")
        parts.append(f"<text x={left - 5} y={height + 4} text-anchor=end>{show_number(value)}</text>")
    for number in numbers:
        across = round(LEFT + math.log10(max(number, 1)) / last * (WIDTH - LEFT - RIGHT), 1)
        parts.append(f"<text x={across} y={bottom + 15} text-anchor=middle>{number:,}</text>")
    return parts


def _draw_series(name: str, points: Mapping[int, Sequence[float]], place: _Place) -> list[str]:
    parts = []
    middles = []
    for number, values in sorted(points.items()):
        spread = describe_spread(list(values))
        across, height = place(number, spread.median)
        middles.append((across, height))
        ends = place(number, spread.low)[1], place(number, spread.high)[1]
        title = f"<title>{number:,}: {show_values(list(values))}</title>"
        parts.append(f"<line class='spread {name}' x1={across} x2={across} y1={ends[0]} y2={ends[1]} />")
        parts.append(f"<circle class='point {name}' cx={across} cy={height} r=4>{title}</circle>")
    return [f"<polyline class='curve {name}' points='{_join(middles)}' />", *parts]


def _join(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{across},{height}" for across, height in points)


def _round_up(value: float) -> float:
    """One, two or five times a power of ten, so that the axis has round numbers."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in (1, 2, 4, 5, 8, 10) if factor * power >= value * 0.9999)


def _svg(width: int, height: int, parts: Sequence[str], title: str) -> str:
    return (
        f"<svg viewBox='0 0 {width} {height}' width={width} height={height} role=img aria-label='{escape(title)}'>"
        f"{''.join(parts)}</svg>"
    )
