# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes the tables of what may pass into docs/architecture.md and SECURITY.md: `python -m tests.permits_page`.

Each table is between two comments of the document. A test compares the tables with the rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from psiphon_vpn.cli.explain import describe_layer, describe_layers, describe_match, describe_states
from psiphon_vpn.policy import permits
from psiphon_vpn.policy.match import Difference, Permit
from psiphon_vpn.policy.own_tables import BASE

ROOT = Path(__file__).parents[1]
TABLE = re.compile(r"(<!-- rows: ([a-z ]+) -->\n).*?(<!-- end of rows -->)", re.DOTALL)
ARCHITECTURE = {
    "on a wire": permits.ON_A_WIRE,
    "to guests": permits.TO_GUESTS,
    "coming in": permits.COMING_IN,
    "forwarded": permits.FORWARDED,
    "into the tunnel": permits.INTO_THE_TUNNEL,
    "on loopback": permits.ON_LOOPBACK,
}


def render_rows(rows: Iterable[Permit]) -> str:
    """A table for engineers: one line for each row."""
    lines = ["| Row | Who | What | In values | When | Layers | Why |", "| --- | --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        cells = (
            f"`{row.name}`",
            str(row.match.owner),
            row.what,
            describe_match(row.match),
            describe_states(row),
            describe_layers(row),
            row.why,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def render_exceptions() -> str:
    """A table for users: what leaves although it is not the tunnel, and what it shows."""
    lines = ["| What | Who | Why | What it shows to your network |", "| --- | --- | --- | --- |"]
    for row in (*permits.ON_A_WIRE, *permits.TO_GUESTS):
        facts = [fact for fact in row.list_differences(BASE) if fact is not Difference.STATE]
        narrowed = describe_layer(row, BASE).partition(" (")[2].rstrip(")") if facts else ""
        states = f" ({describe_states(row)})" if row.states != permits.EVERY_STATE else ""
        what = f"{row.what}{states}" + (f": {narrowed.removeprefix(f'{Difference.STATE}; ')}" if narrowed else "")
        lines.append(f"| {what} | {row.match.owner} | {row.why} | {row.shows or 'To your network nothing'} |")
    return "\n".join(lines) + "\n"


def fill(text: str) -> str:
    """A document with its tables replaced by current ones."""

    def write(found: re.Match[str]) -> str:
        name = found[2]
        table = render_exceptions() if name == "exceptions" else render_rows(ARCHITECTURE[name])
        return f"{found[1]}{table}{found[3]}"

    return TABLE.sub(write, text)


DOCUMENTS = {ROOT / "docs" / "architecture.md": set(ARCHITECTURE), ROOT / "SECURITY.md": {"exceptions"}}
"""The documents, and the tables that each has."""


if __name__ == "__main__":
    for document in DOCUMENTS:
        document.write_text(fill(document.read_text(encoding="utf-8")), encoding="utf-8")
