# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A run as one self-contained HTML page: what was found, every figure with its rounds, every growth as a plot. Pure.

It has no script, no font and no external address, so it opens offline. Its content security policy allows nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from psiphon_lab.bench.compare import Change
from psiphon_lab.bench.growth import Shape
from psiphon_lab.bench.model import Figure, Growth, Report
from psiphon_lab.bench.paired import Verdict
from psiphon_lab.bench.plots import draw_comparison, draw_growth
from psiphon_lab.bench.summary import count_verdicts, list_grown
from psiphon_lab.bench.words import show_goal, show_growth, show_interval, show_middle, show_values, show_verdict

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --line: #d5dae0; --soft: #f3f5f7; --good: #2f8f57;
 --bad: #c62828; --doubt: #a86a00; --none: #6a737d; --own: #1f6fb2; --base: #8a929b }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --paper: #16191d; --line: #363c44; --soft: #20252b;
 --good: #3aa76a; --bad: #ef5350; --doubt: #e2a32b; --none: #98a2ad; --own: #62aee8; --base: #7d8792 } }
* { box-sizing: border-box } body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper);
 margin: 0 auto; padding: 1.5rem; max-width: 84rem }
h1 { font-size: 1.5rem; margin: 0 0 .3rem } h2 { font-size: 1.15rem; margin: 1.8rem 0 .4rem }
.hint { color: var(--none) }
.big { font-size: 1.15rem; font-weight: 650; padding: .5rem .9rem; border-radius: .4rem; display: inline-block;
 color: #fff; margin: .4rem 0 } .big.good { background: var(--good) } .big.bad { background: var(--bad) }
.big.doubt { background: var(--doubt) }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-size: .9rem; width: 100% }
th, td { text-align: left; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid var(--line); vertical-align: middle }
th { font-weight: 600; font-size: .82rem } td.number { white-space: nowrap; font-variant-numeric: tabular-nums }
.tag { font-weight: 650; white-space: nowrap } .good { color: var(--good) } .bad { color: var(--bad) }
.doubt { color: var(--doubt) } .none { color: var(--none); font-weight: 400 }
.big.good, .big.bad, .big.doubt { color: #fff }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(27rem, 1fr)); gap: 1rem }
figure { margin: 0; border: 1px solid var(--line); border-radius: .4rem; padding: .6rem } svg { max-width: 100%;
 height: auto } figcaption { font-size: .88rem; margin-bottom: .3rem } svg text { font-size: 11px; fill: var(--none) }
svg .same { stroke: var(--none); stroke-dasharray: 2 2 } svg .goal { stroke: var(--good); stroke-width: 2 }
svg .range { stroke: var(--own); stroke-width: 5; stroke-linecap: round; opacity: .45 } svg .round { fill: var(--base) }
svg .middle { fill: var(--own) } svg .axis { stroke: var(--none) } svg .grid { stroke: var(--line) }
svg .curve, svg .fit { fill: none } svg .curve.product { stroke: var(--own); stroke-width: 1.5 }
svg .curve.base { stroke: var(--base); stroke-width: 1.5 } svg .fit { stroke: var(--doubt); stroke-dasharray: 5 4 }
svg .point.product { fill: var(--own) } svg .point.base { fill: var(--base) } svg .spread.product { stroke: var(--own) }
svg .spread.base { stroke: var(--base) } dt { font-weight: 600 } dd { margin: 0 0 .3rem }
"""
CLASSES = {"met": "good", "missed": "bad", "not decided": "doubt"}


def render_page(report: Report, changes: list[Change] | None = None) -> str:
    """The page's HTML. changes: from an older run; None if it was not compared with one."""
    kind, headline = _headline(report)
    about = report.about
    load = about.get("load", {})
    sentence = (
        f"{about.get('programs', 'unknown programs')}; {about.get('rounds', '?')} rounds, in turn with what each "
        f"figure is compared with; {about.get('when', '')}. Linux {about.get('kernel', '?')}, "
        f"{about.get('processors', '?')} processors ({about.get('processor', '?')}); "
        f"commit {about.get('commit', '?')}. Load of the machine meanwhile: {load.get('median', 0):.1f} "
        f"({load.get('least', 0):.1f} to {load.get('most', 0):.1f})."
    )
    return f"""<!doctype html>
<html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width">
<meta http-equiv=Content-Security-Policy content="default-src 'none'; style-src 'unsafe-inline'">
<title>Bench: {escape(headline)}</title><style>{STYLE}</style>
<h1>As fast as the bare core?</h1>
<div class="big {kind}">{escape(headline)}</div>
<p>{escape(sentence)}</p>
<p class=hint>Values are medians with quartiles. A comparison is the median over the rounds; its interval contains the
true one with 95 %, or less if there are fewer than six rounds. In the drawings the dashed line is "the same", the green
one the goal, the bar the interval, each small dot a round. A goal is met or missed only if the whole interval says so.
</p>
{"".join(_list_changes(changes))}{"".join(_list_families(report))}{"".join(_list_growths(report))}
{"".join(_list_failures(report))}
</html>
"""


def _headline(report: Report) -> tuple[str, str]:
    counts = count_verdicts(report)
    grown = len(list_grown(report))
    goals = ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict])
    parts = [f"Goals: {goals}"] if goals else []
    parts += [f"{grown} of {len(report.growths)} growths not flat"] if report.growths else []
    parts += [f"{len(report.failures)} not measured"] if report.failures else []
    kind = "bad" if counts[Verdict.MISSED] else "doubt" if counts[Verdict.OPEN] or grown else "good"
    return kind, "; ".join(parts) or "Nothing was judged"


def _list_families(report: Report) -> Iterator[str]:
    families: dict[str, list[Figure]] = {}
    for figure in report.figures.values():
        families.setdefault(figure.title.family, []).append(figure)
    for family, figures in families.items():
        rows = "".join(_show_row(figure) for figure in figures)
        yield (
            f"<h2>{escape(family)}</h2><div class=scroll><table><tr><th>figure<th>unit<th>beside<th>product<th>compared"
            f"<th><th>goal<th>{rows}</table></div>"
        )


def _show_row(figure: Figure) -> str:
    title = figure.title
    verdict = show_verdict(figure)
    base = f"{show_values(figure.base)}" if figure.base else "\N{EN DASH}"
    compared = f"<b>{escape(show_middle(figure))}</b> {escape(show_interval(figure))}" if figure.base else ""
    beside = "" if title.base == "bare core" or not figure.base else f"<br><span class=hint>{escape(title.base)}</span>"
    return (
        f"<tr><td>{escape(title.name)}<td>{escape(title.unit)}<td class=number>{escape(base)}{beside}"
        f"<td class=number>{escape(show_values(figure.product))}<td class=number>{compared}"
        f"<td>{draw_comparison(figure)}"
        f"<td class=number>{escape(show_goal(title))}"
        f"<td class='tag {CLASSES.get(verdict, 'none')}'>{escape(verdict)}"
    )


def _list_growths(report: Report) -> Iterator[str]:
    if not report.growths:
        return
    yield "<h2>growth</h2><p class=hint>Blue: the product; grey: the bare core; dashed: the fitted line.</p>"
    yield "<div class=plots>"
    for growth in report.growths.values():
        yield _show_growth(growth)
    yield "</div>"


def _show_growth(growth: Growth) -> str:
    shape = growth.fit.shape
    kind = {Shape.FLAT: "good", Shape.LEVELS: "good", Shape.LINEAR: "doubt", Shape.STEEPER: "bad"}.get(shape, "none")
    return (
        f"<figure><figcaption><b>{escape(growth.name)}</b>, {escape(growth.unit)}<br>"
        f"<span class='tag {kind}'>{escape(show_growth(growth))}</span></figcaption>{draw_growth(growth)}</figure>"
    )


def _list_changes(changes: list[Change] | None) -> Iterator[str]:
    if changes is None:
        return
    yield "<h2>what changed since the older run</h2>"
    if not changes:
        yield "<p>Nothing beyond noise.</p>"
        return
    words = {True: ("good", "better"), False: ("bad", "worse"), None: ("none", "")}
    rows = "".join(
        f"<tr><td>{escape(change.key)}<td>{escape(change.before)}<td>{escape(change.after)}"
        f"<td class='tag {words[change.better][0]}'>{words[change.better][1]}"
        for change in changes
    )
    yield f"<table><tr><th>figure<th>before<th>now<th>{rows}</table>"


def _list_failures(report: Report) -> Iterator[str]:
    if report.failures:
        yield "<h2>not measured</h2><dl>"
        for name, reason in report.failures.items():
            yield f"<dt>{escape(name)}</dt><dd>{escape(reason)}</dd>"
        yield "</dl>"
