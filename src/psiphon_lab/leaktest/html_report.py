# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The result as one self-contained HTML page: the matrix, and behind each square what was measured. Pure.

It has no script, no font and no external address, so it opens offline, from a disk or a mail. Its content security
policy allows nothing else.
"""

from __future__ import annotations

import time
from html import escape
from typing import Any

from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.matrix import Result
from psiphon_lab.leaktest.states import STATES
from psiphon_lab.leaktest.verdict import Kind
from psiphon_lab.revision import describe_commits

SIGNS = {
    Kind.HELD: "\N{CHECK MARK}",
    Kind.LEAK: "\N{BALLOT X}",
    Kind.WEAKER: "~",
    Kind.INCONCLUSIVE: "?",
    Kind.NOT_APPLICABLE: "\N{EN DASH}",
}
MEANING = {
    Kind.HELD: "held: every frame outside was innocent, and every attempt was seen without the lock",
    Kind.LEAK: "leak: there was a frame outside that is not innocent",
    Kind.WEAKER: "weaker: there was one, and this kernel lacks the mechanism that would have stopped it; not held",
    Kind.INCONCLUSIVE: "inconclusive: part of the proof is missing; it does not count as held",
    Kind.NOT_APPLICABLE: "not applicable: this attack proves nothing in this state, for the reason given",
}
STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --line: #d5dae0; --soft: #f3f5f7; --held: #2f8f57;
 --leak: #c62828; --doubt: #d08700; --none: #aab2bb; --far: #6b5fb5; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --paper: #16191d; --line: #363c44; --soft: #20252b;
 --held: #3aa76a; --leak: #ef5350; --doubt: #e2a32b; --none: #59626d; --far: #8f83da; } }
* { box-sizing: border-box } body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper);
 margin: 0 auto; padding: 1.5rem; max-width: 100rem }
h1 { font-size: 1.5rem; margin: 0 0 .3rem } .big { font-size: 1.15rem; font-weight: 650; padding: .5rem .9rem;
 border-radius: .4rem; display: inline-block; color: #fff; margin: .4rem 0 }
.scroll { overflow-x: auto } table.matrix { border-collapse: collapse; margin-top: 1rem }
.matrix th { font-weight: 500; font-size: .82rem }
.matrix thead th { height: 7.2rem; vertical-align: bottom; padding: 0 }
.matrix thead th span { writing-mode: vertical-rl; transform: rotate(180deg); white-space: nowrap; padding: .3rem 0 }
.matrix tbody th { text-align: left; padding: .1rem .8rem .1rem 0; white-space: nowrap } .matrix td { padding: 1px }
.matrix tbody tr:hover { background: var(--soft) } .id { font-family: ui-monospace, monospace; opacity: .7 }
summary { cursor: pointer; list-style: none } summary::-webkit-details-marker { display: none }
td summary { display: flex; width: 2.9rem; height: 1.45rem; border-radius: .2rem; overflow: hidden }
td summary:focus-visible { outline: 3px solid var(--ink) } td summary span { flex: 1; text-align: center; color: #fff;
 font-size: .85rem; line-height: 1.45rem } td summary span + span { border-left: 1px solid #fff8 }
.held { background: var(--held) } .leak { background: var(--leak) } .inconclusive, .weaker { background: var(--doubt) }
.not-applicable { background: var(--none) } .out-of-reach { background: var(--far) }
td details[open] summary { outline: 3px solid var(--ink) }
.panel { position: fixed; z-index: 9; top: 0; right: 0; width: min(46rem, 100vw); height: 100vh; overflow: auto;
 background: var(--paper); border-left: 2px solid var(--line); padding: 1.2rem; box-shadow: 0 0 2rem #0005 }
.panel h2 { font-size: 1.1rem; margin: 0 0 .2rem } .panel h3 { font-size: .95rem; margin: 1rem 0 .2rem }
.panel table { border-collapse: collapse; font-size: .84rem; width: 100% } .panel td, .panel th { text-align: left;
 padding: .15rem .5rem .15rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
code, pre { font: .82rem/1.4 ui-monospace, monospace } pre { white-space: pre-wrap; overflow-wrap: anywhere;
 background: var(--soft); padding: .5rem; border-radius: .3rem; margin: .2rem 0 }
 .tag { color: #fff; padding: .05rem .45rem;
 border-radius: .25rem } .legend span.tag { margin-right: .35rem } .legend li { list-style: none; margin: .15rem 0 }
ul.legend { padding: 0 } .hint { opacity: .75 } dt { font-weight: 600; margin-top: .6rem } dd { margin: 0 }
/* Part of the square, so that a click on it closes the panel. */
td details[open] summary::after { content: "\\2715  close"; position: fixed; z-index: 10; top: .9rem; right: 1.6rem;
 font-size: .85rem; color: var(--ink); background: var(--soft); padding: .15rem .6rem; border-radius: .3rem }
@media print { .panel { position: static; width: auto; height: auto; box-shadow: none } }
"""


def render_page(result: Result) -> str:
    """The page's HTML."""
    counts = result.count()
    verdict = _headline(result)
    cells = {(cell["attack"], cell["state"]): cell for cell in result.cells}
    head = "".join(f"<th scope=col><span>{escape(str(mode))}</span></th>" for mode in result.modes)
    rows = []
    for attack in result.attacks:
        squares = "".join(f"<td>{_square(attack, cells[attack.id, mode])}</td>" for mode in result.modes)
        rows.append(f"<tr><th scope=row><span class=id>{attack.id}</span> {escape(attack.name)}</th>{squares}</tr>")
    legend = "".join(
        f"<li><span class='tag {kind}'>{SIGNS[kind]}</span>{escape(meaning)}</li>" for kind, meaning in MEANING.items()
    )
    legend += (
        "<li><span class='tag out-of-reach'>!</span>out of reach: tried and shown, but no rule can stop it; "
        "SECURITY.md explains why</li>"
    )
    shown = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(result.seen_at))
    return f"""<!doctype html>
<html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width">
<meta http-equiv=Content-Security-Policy content="default-src 'none'; style-src 'unsafe-inline'">
<title>Leak test: {escape(verdict[1])}</title><style>{STYLE}</style>
<h1>Every known leak, tried in every state</h1>
<div class="big {verdict[0]}">{escape(verdict[1])}</div>
<p>{shown}. {result.frames} frames judged outside the machine under test, in {result.seconds:.0f} s, {when}.
{escape(describe_commits(result.commits))}
<span class=hint>Each square is an attack in a state: IPv4 on the left, IPv6 on the right. Click one to see what was
done, what the control showed, every frame that leaked, and which layer stopped the rest.
</span></p>
<ul class=legend>{legend}</ul>
<div class=scroll><table class=matrix><thead><tr><td></td>{head}</tr></thead>
<tbody>{"".join(rows)}</tbody></table></div>
<h2>The states</h2><dl>{_describe_states(result)}</dl>
<h2>The attacks</h2><dl>{"".join(_describe_attack(attack) for attack in result.attacks)}</dl>
</html>
"""


def _headline(result: Result) -> tuple[str, str]:
    counts = result.count()
    if counts[Kind.LEAK]:
        return "leak", f"{counts[Kind.LEAK]} of {len(result.cells)} leaked"
    if not result.held:
        return "inconclusive", "Nothing leaked, but not everything was proven"
    if counts["out-of-reach"]:
        return "held", "Every attack that rules can stop was stopped in every state"
    return "held", "Nothing leaked: every attack was stopped in every state"


def _describe_states(result: Result) -> str:
    return "".join(f"<dt>{escape(str(mode))}</dt><dd>{escape(STATES[mode].summary)}</dd>" for mode in result.modes)


def _describe_attack(attack: Attack) -> str:
    limit = f" <b>Out of reach:</b> {escape(attack.out_of_reach)}." if attack.out_of_reach else ""
    return (
        f"<dt>{attack.id} {escape(attack.name)}</dt><dd>{escape(attack.summary)}{limit} "
        f"<span class=hint>{escape(attack.reference)}</span></dd>"
    )


def _square(attack: Attack, cell: dict[str, Any]) -> str:
    halves = []
    for family in (4, 6):
        kind = Kind(cell["families"].get(f"ipv{family}", Kind.NOT_APPLICABLE))
        shown, sign = str(kind), SIGNS[kind]
        if attack.out_of_reach and kind is not Kind.NOT_APPLICABLE:
            shown, sign = "out-of-reach", "!" if kind is Kind.LEAK else sign
        halves.append(f"<span class={shown}>{sign}</span>")
    title = f"{attack.id} {cell['state']}: {cell['verdict']}"
    return (
        f"<details name=cell><summary title='{escape(title)}'>{''.join(halves)}</summary>"
        f"<div class=panel>{_panel(attack, cell)}</div></details>"
    )


def _panel(attack: Attack, cell: dict[str, Any]) -> str:
    parts = [
        f"<h2>{attack.id} {escape(attack.name)}, state: {escape(str(cell['state']))}</h2>",
        f"<p><span class='tag {cell['verdict']}'>{cell['verdict']}</span> {escape(cell['reason'])}</p>",
        f"<p>{escape(attack.summary)}</p>",
    ]
    if cell["verdict"] == Kind.NOT_APPLICABLE:
        return "".join(parts)
    if cell["actions"]:
        parts.append(f"<h3>What was done</h3><pre>{escape(chr(10).join(cell['actions']))}</pre>")
    rows = "".join(
        f"<tr><td>{escape(item['name'])}<td>{item['by']}<td>{item['rounds']}<td>{escape(_list_results(item))}"
        f"<td>{item['control_seen']}<td>{item['seen']}"
        for item in cell["attempts"]
    )
    parts.append(
        "<h3>Attempts</h3><table><tr><th>what<th>by<th>times<th>the program results<th>frames without the lock"
        f"<th>frames now{rows}</table><p class=hint>Recognised {escape(attack.recognised)}. Control: "
        f"{escape(attack.control)}.</p>"
    )
    stopped = ", ".join(f"{escape(layer)} ({count})" for layer, count in cell["stopped_by"].items())
    parts.append(f"<h3>Which layer stopped it</h3><p>{stopped or 'no counter moved'}</p>")
    kinds = ", ".join(f"{count} {escape(kind)}" for kind, count in sorted(cell["innocent"].items()))
    parts.append(
        f"<h3>Frames outside: {cell['frames']}</h3><p>Innocent: {kinds or 'none'}. File: "
        f"<code>{escape(cell['recording'])}</code></p>"
    )
    if cell["leaks"]:
        shown = "\n".join(
            f"{leak['wire']}: {leak['text']}  [{leak['attempt'] or 'of no attempt'}]\n    {leak['hex'][:96]}"
            for leak in cell["leaks"]
        )
        parts.append(f"<h3>Leaked: {cell['leak_count']}</h3><pre>{escape(shown)}</pre>")
    return "".join(parts)


def _list_results(item: dict[str, Any]) -> str:
    if item["error"]:
        return str(item["error"])
    return ", ".join(f"{results} ({count})" for results, count in item["results"].items())
