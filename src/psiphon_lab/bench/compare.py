# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What changed from one run to another beyond noise. Pure.

Comparisons with the base are compared, not the values themselves: so two runs on machines with another load, or on
other machines, can be told apart from a change of the product. A change is told only if the intervals do not overlap.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from psiphon_lab.bench.growth import Shape
from psiphon_lab.bench.model import Figure, Growth, Report
from psiphon_lab.bench.paired import LEAST_CONFIDENCE
from psiphon_lab.bench.words import get_interval, show_interval


@dataclass(frozen=True, kw_only=True)
class Change:
    """One figure that changed. better: None if it only disappeared or is new."""

    key: str
    before: str
    after: str
    better: bool | None


def list_changes(old: Report, new: Report) -> Iterator[Change]:
    """What changed beyond noise, and what only one of the runs has."""
    for key, figure in new.figures.items():
        before = old.figures.get(key)
        if before is not None and (found := _compare(before, figure)) is not None:
            yield found
    for key, growth in new.growths.items():
        earlier = old.growths.get(key)
        if earlier is not None and (changed := _compare_growth(earlier, growth)) is not None:
            yield changed
    for key in (*new.failures.keys() - old.failures.keys(),):
        yield Change(key=key, before="measured", after=f"not measured: {new.failures[key]}", better=None)


def list_only(old: Report, new: Report) -> tuple[list[str], list[str]]:
    """What only the old run measured, and what only the new one did."""
    before, after = ({*report.figures, *report.growths} for report in (old, new))
    return sorted(before - after), sorted(after - before)


def _compare(old: Figure, new: Figure) -> Change | None:
    before, after = get_interval(old), get_interval(new)
    if bool(old.base) is not bool(new.base) or old.title.comparison is not new.title.comparison:
        return None  # not the same thing any more
    if before.low <= after.high and after.low <= before.high:
        return None
    if min(before.confidence, after.confidence) < LEAST_CONFIDENCE:
        return None
    rose = after.low > before.high
    return Change(
        key=new.title.key,
        before=show_interval(old),
        after=show_interval(new),
        better=rose is new.title.more_is_better,
    )


def _compare_growth(old: Growth, new: Growth) -> Change | None:
    before, after = old.fit, new.fit
    if Shape.UNKNOWN in {before.shape, after.shape}:
        return None
    apart = after.low > before.high or after.high < before.low
    if before.shape is after.shape and (before.shape is Shape.FLAT or not apart):
        return None
    if not apart:
        return None
    words = [f"{fit.shape}, {fit.slope:.3g} {new.unit} each" for fit in (before, after)]
    return Change(key=new.key, before=words[0], after=words[1], better=after.slope < before.slope)
