# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A run on a terminal of 80 columns: a screenful, or every figure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from psiphon_lab.bench.compare import Change
from psiphon_lab.bench.model import Figure, Report
from psiphon_lab.bench.paired import Verdict
from psiphon_lab.bench.summary import count_verdicts, list_grown, list_judged
from psiphon_lab.bench.words import show_goal, show_growth, show_interval, show_middle, show_verdict
from psiphon_vpn.i18n import _

WIDTH = 79
MOST, MOST_BESIDE, MOST_CHANGES = 5, 2, 4
"""Lines of a part of the screenful: alone, beside changes, and of the changes."""


def render_screen(report: Report, changes: list[Change] | None, *, apart: int = 0) -> Iterator[str]:
    """At most 23 lines: families, what misses its goal, what grows, what changed.

    apart: the number of figures that only this or only the older run has.
    """
    most = MOST if changes is None else MOST_BESIDE
    yield from _list_families(report)
    missed = [_fit(_name(figure), f"{show_middle(figure)}, {_('goal')} {show_goal(figure.title)}")
              for figure in list_judged(report, Verdict.MISSED)]  # fmt: skip
    yield from _show_part(_("Missed:"), missed, most)
    grown = [_fit(growth.name, _first(show_growth(growth))) for growth in list_grown(report)]
    yield from _show_part(_("Not flat:"), grown, most)
    if changes is not None:
        words = {True: _("better"), False: _("worse"), None: ""}
        lines = [_fit(change.key, f"{change.after} {words[change.better]}") for change in changes]
        yield from _show_part(_("Changed beyond noise:"), lines, MOST_CHANGES)
        if not changes:
            yield _("Nothing changed beyond noise.")
    if apart:
        yield _("Only one of the runs has {count} more figures.").format(count=apart)
    load = report.about.get("load", {})
    yield _("{rounds} rounds in {minutes:.0f} min; load of the machine {load:.1f}; not measured: {failed}").format(
        rounds=report.about.get("rounds", 0),
        minutes=report.about.get("seconds", 0) / 60,
        load=load.get("median", 0.0),
        failed=len(report.failures),
    )


def render_all(report: Report) -> Iterator[str]:
    """A line for each figure and each growth."""
    for figure in report.figures.values():
        yield _fit(_name(figure), f"{show_interval(figure)}  {show_verdict(figure):>15}", most=None)
    for growth in report.growths.values():
        yield _fit(growth.name, show_growth(growth), most=None)
    for name, reason in report.failures.items():
        yield f"? {name}: {reason}"


def _list_families(report: Report) -> Iterator[str]:
    figures: Counter[str] = Counter(figure.title.family for figure in report.figures.values())
    noise: Counter[str] = Counter(figure.title.family for figure in report.figures.values() if figure.is_noise)
    judged = {verdict: Counter(figure.title.family for figure in list_judged(report, verdict)) for verdict in Verdict}
    yield f"{'':<12}{_('figures'):>9}{_('below noise'):>13}{_('met'):>8}{_('missed'):>8}{_('not decided'):>13}"
    for family, count in figures.items():
        numbers = [judged[verdict][family] for verdict in (Verdict.MET, Verdict.MISSED, Verdict.OPEN)]
        yield f"{family:<12}{count:>9}{noise[family]:>13}{numbers[0]:>8}{numbers[1]:>8}{numbers[2]:>13}"
    total = count_verdicts(report)
    if sum(total.values()) == 0 and not figures:
        yield _("No figure.")


def _show_part(title: str, lines: list[str], most: int) -> Iterator[str]:
    if lines:
        yield title
        yield from lines[:most]
    if len(lines) > most:
        yield _("  and {count} more (--all)").format(count=len(lines) - most)


def _name(figure: Figure) -> str:
    return f"{figure.title.family}: {figure.title.name}"


def _first(text: str) -> str:
    return text.partition(" (")[0]


def _fit(left: str, right: str, *, most: int | None = WIDTH) -> str:
    """Two columns; the left one is shortened."""
    if most is None:
        return f"  {left:<58} {right}"
    room = most - 4 - len(right)
    shown = left if len(left) <= room else left[: max(0, room - 1)] + "…"
    return f"  {shown:<{room}}  {right}"
