# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What a run of `psiphon-vpn bench` found, and its JSON form. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from psiphon_lab.bench.growth import Fit, fit_growth
from psiphon_lab.bench.paired import (
    Comparison,
    Interval,
    Verdict,
    compare_rounds,
    find_interval,
    is_below_noise,
    judge_goal,
)

FORMAT: Final = 1
BARE: Final = "bare core"


class ReportError(Exception):
    """A file is not the JSON of a run."""


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What a comparison, or with `absolute` the product's own value, should be at least or at most."""

    bound: float
    at_least: bool = False
    absolute: bool = False


@dataclass(frozen=True, kw_only=True)
class Title:
    """What a figure is.

    Attributes:
        family: the family of measurements that it belongs to.
        name: unique in the family.
        base: what it is compared with.
        more_is_better: for rates.
    """

    family: str
    name: str
    unit: str
    comparison: Comparison = Comparison.RATIO
    base: str = BARE
    more_is_better: bool = False
    goal: Goal | None = None

    @property
    def key(self) -> str:
        """Family and name."""
        return f"{self.family}: {self.name}"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure with its rounds. Without a base there is nothing to compare it with."""

    title: Title
    base: list[float] = field(default_factory=list)
    product: list[float] = field(default_factory=list)

    @property
    def compared(self) -> Interval | None:
        """The median of the comparison lies here; None if nothing was compared."""
        if not self.base:
            return None
        return find_interval(compare_rounds(self.base, self.product, self.title.comparison))

    @property
    def rounds(self) -> list[float]:
        """The comparison, round by round."""
        return compare_rounds(self.base, self.product, self.title.comparison) if self.base else []

    @property
    def is_noise(self) -> bool:
        """Whether the difference is below the noise."""
        compared = self.compared
        return compared is not None and is_below_noise(compared, self.title.comparison.same)

    @property
    def verdict(self) -> Verdict | None:
        """Whether the goal is met; None if there is none."""
        goal = self.title.goal
        if goal is None:
            return None
        interval = find_interval(self.product) if goal.absolute else self.compared
        return None if interval is None else judge_goal(interval, goal.bound, at_least=goal.at_least)


@dataclass(frozen=True, kw_only=True)
class Growth:
    """A figure by a number that grows. base: the same with the bare core, if that can be measured."""

    family: str
    name: str
    unit: str
    number_of: str
    product: dict[int, list[float]] = field(default_factory=dict)
    base: dict[int, list[float]] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Family and name."""
        return f"{self.family}: {self.name}"

    @property
    def fit(self) -> Fit:
        """How the product's values grow; beside the bare core, how their ratio to its values does.

        So a busy computer, which slows both, makes no growth.
        """
        if not self.base:
            return fit_growth(self.product)
        pairs = self.product.items()
        return fit_growth(
            {number: compare_rounds(self.base[number], values, Comparison.RATIO) for number, values in pairs}
        )


@dataclass(kw_only=True)
class Report:
    """A run.

    Attributes:
        about: where and how it ran: programs, kernel, processors, the load before and after.
        failures: what could not be measured, with the reason, by step.
    """

    about: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, Figure] = field(default_factory=dict)
    growths: dict[str, Growth] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def add(self, title: Title, base: float | None, product: float) -> None:
        """Add a round of a figure. base: None if there is nothing to compare with."""
        figure = self.figures.setdefault(title.key, Figure(title=title))
        if base is not None:
            figure.base.append(float(base))
        figure.product.append(float(product))

    def add_growth(self, growth: Growth, number: int, base: float | None, product: float) -> None:
        """Add a round of one point of a growth. growth: an empty one, for its title."""
        found = self.growths.setdefault(growth.key, growth)
        found.product.setdefault(number, []).append(float(product))
        if base is not None:
            found.base.setdefault(number, []).append(float(base))

    def describe(self) -> dict[str, Any]:
        """The JSON form, with the conclusions for readers that do not draw them themselves."""
        return {
            "format": FORMAT,
            "about": self.about,
            "figures": [_describe_figure(figure) for figure in self.figures.values()],
            "growths": [{**asdict(growth), "fit": asdict(growth.fit)} for growth in self.growths.values()],
            "failures": self.failures,
        }


def _describe_figure(figure: Figure) -> dict[str, Any]:
    compared, verdict = figure.compared, figure.verdict
    return {
        **asdict(figure),
        "compared": None if compared is None else asdict(compared),
        "below_noise": figure.is_noise,
        "verdict": None if verdict is None else str(verdict),
    }


def read_report(data: Any) -> Report:
    """The report of its JSON form. Raises ReportError if it is none."""
    try:
        if data["format"] != FORMAT:
            raise ReportError(f"format {data['format']}, not {FORMAT}")
        report = Report(about=dict(data["about"]), failures=dict(data["failures"]))
        for item in data["figures"]:
            title = _read_title(item["title"])
            numbers = [[float(value) for value in item[side]] for side in ("base", "product")]
            report.figures[title.key] = Figure(title=title, base=numbers[0], product=numbers[1])
        for item in data["growths"]:
            words = {name: str(item[name]) for name in ("family", "name", "unit", "number_of")}
            growth = Growth(**words, product=_read_points(item["product"]), base=_read_points(item["base"]))
            report.growths[growth.key] = growth
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ReportError(f"{error.__class__.__name__}: {error}") from error
    return report


def _read_title(data: Mapping[str, Any]) -> Title:
    goal = None if data["goal"] is None else Goal(**data["goal"])
    return Title(**{**data, "comparison": Comparison(data["comparison"]), "goal": goal})


def _read_points(data: Mapping[str, Any]) -> dict[int, list[float]]:
    return {int(number): [float(value) for value in values] for number, values in data.items()}
