# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Output of the results: a line for each check, in words and not only colours; or one JSON object for programs."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, Final

import click

from psiphon_vpn.client import clean_text
from psiphon_vpn.diagnose.model import EXIT_GOOD, EXIT_OPEN, GROUP_TITLES, Group, Result, Verdict, find_exit_code
from psiphon_vpn.i18n import _, ngettext
from psiphon_vpn.wrapping import wrap

SYMBOLS: Final = {
    Verdict.OK: ("ok", "green"),
    Verdict.WARNING: ("!", "yellow"),
    Verdict.FAILED: ("x", "red"),
    Verdict.SKIPPED: ("-", "bright_black"),
    Verdict.UNKNOWN: ("?", "red"),
}
MARGIN: Final = 6
FOLD: Final = 3
"""From so many on, checks that are skipped for the same reason share a line."""
MIN_WIDTH, MAX_WIDTH = 50, 100


def render_text(results: Sequence[Result], *, width: int = 80, quiet: bool = False) -> str:
    """Return the results for people.

    Args:
        results: in the order of the table of checks.
        width: columns.
        quiet: only what is wrong or worth knowing, and the summary.
    """
    width = max(MIN_WIDTH, min(width, MAX_WIDTH))
    lines: list[str] = []
    for group in Group:
        of_group = [
            result
            for result in results
            if result.check.group is group and not (quiet and result.verdict in {Verdict.OK, Verdict.SKIPPED})
        ]
        if not of_group:
            continue
        lines.append(click.style(_(GROUP_TITLES[group]), bold=True))
        folded = _find_folded(of_group)
        for result in of_group:
            if result.reason not in folded or result.verdict is not Verdict.SKIPPED:
                lines += _render_result(result, width)
        for reason, count in folded.items():
            symbol, color = SYMBOLS[Verdict.SKIPPED]
            text = ngettext("{count} check: {reason}", "{count} checks: {reason}", count)
            lines.append(
                click.style(f"  {symbol.ljust(MARGIN - 3)} ", fg=color) + text.format(count=count, reason=reason)
            )
    lines += ["", *_render_summary(results, width, quiet=quiet)]
    return "\n".join(lines)


def _find_folded(results: Sequence[Result]) -> dict[str, int]:
    """Reasons for which several checks of a group are skipped: they share a line."""
    counts: dict[str, int] = {}
    for result in results:
        if result.verdict is Verdict.SKIPPED:
            counts[result.reason] = counts.get(result.reason, 0) + 1
    return {reason: count for reason, count in counts.items() if count >= FOLD}


def _render_result(result: Result, width: int) -> Iterator[str]:
    symbol, color = SYMBOLS[result.verdict]
    title, reason = _(result.check.title), clean_text(result.reason)
    head = click.style(f"  {symbol.ljust(MARGIN - 3)} ", fg=color, bold=result.wrong)
    room = width - MARGIN
    if result.verdict in {Verdict.OK, Verdict.SKIPPED}:
        # One line whatever the reason, so that good results do not hide bad ones.
        text = f"{title}: {reason}" if reason else title
        yield head + (text if len(text) <= room else text[: room - 3].rstrip() + "...")
        return
    yield head + click.style(textwrap.shorten(title, room, placeholder="..."), fg=color)
    for label, text in ((_("why"), reason), (_("do"), clean_text(result.next_step or ""))):
        if text:
            yield from _wrap(f"{label}: {text}", width)


def _wrap(text: str, width: int) -> list[str]:
    return wrap(text, width, first=" " * MARGIN, rest=" " * (MARGIN + 4))


def _count(results: Sequence[Result]) -> dict[Verdict, int]:
    return {verdict: sum(result.verdict is verdict for result in results) for verdict in Verdict}


def _render_summary(results: Sequence[Result], width: int, *, quiet: bool) -> Iterator[str]:
    counts, code = _count(results), find_exit_code(tuple(results))
    names = {
        Verdict.OK: _("ok"),
        Verdict.WARNING: _("to know"),
        Verdict.FAILED: _("failed"),
        Verdict.UNKNOWN: _("unknown"),
        Verdict.SKIPPED: _("do not apply"),
    }
    told = ", ".join(f"{counts[verdict]} {name}" for verdict, name in names.items() if counts[verdict])
    total = ngettext("{count} check", "{count} checks", len(results)).format(count=len(results))
    yield from wrap(f"{total}: {told}.", width)
    if not quiet and any(result.wrong for result in results):
        yield from wrap(_("To see only what is wrong or worth knowing: psiphon-vpn diagnose --quiet"), width)
    if code == EXIT_OPEN:
        text, color = _("OPEN, or not known to be locked: traffic may leave this machine past the tunnel."), "red"
    elif code == EXIT_GOOD:
        text, color = _("All is well, and this machine is locked."), "green"
    else:
        text, color = _("Something is wrong, and this machine is locked: no program gets past the tunnel."), "yellow"
    for line in wrap(text, width):
        yield click.style(line, fg=color, bold=True)


def to_json(results: Sequence[Result], *, live: Any = None) -> dict[str, Any]:
    """Return the results as an object for programs; fields are added, never renamed."""
    code = find_exit_code(tuple(results))
    document = {
        "exit_code": code,
        "open": code == EXIT_OPEN,
        "counts": {str(verdict): count for verdict, count in _count(results).items()},
        "checks": [
            {
                "id": result.check.id,
                "group": str(result.check.group),
                "title": _(result.check.title),
                "verdict": str(result.verdict),
                "reason": result.reason,
                "next_step": result.next_step,
                "open": result.open,
                "milliseconds": round(result.seconds * 1000, 1),
            }
            for result in results
        ],
    }
    if live is not None:
        document["live"] = live
    return document


def render_json(document: dict[str, Any]) -> str:
    """Return one line of JSON, ASCII only."""
    return json.dumps(document)
