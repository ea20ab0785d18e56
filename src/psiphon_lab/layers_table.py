# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of what each layer of the lock stops alone, without the others. Pure.

`docs/architecture.md` shows this table, and `tests/lab/test_layers_alone.py` tests each cell with `layers_alone`.
"""

from __future__ import annotations

FILTERS, POSTROUTING, GUARD, EGRESS, FRAMES, TRAFFIC, ROUTING, ARP_TABLE, ARP_SETTINGS = (
    "base table: output, input, forward",
    "base table: postrouting",
    "wire guard",
    "egress guard",
    "frame guard",
    "traffic control",
    "routing wall",
    "ARP table",
    "ARP settings",
)
PLAIN, BOUND, RAW, FRAME, MACVLAN, CONTAINER, ANSWERS, MOVED, REDIRECTED, ARP, STRAYS = (
    "programs",
    "programs bound to a card",
    "raw IP packets",
    "raw frames",
    "a child of a card (macvlan)",
    "containers",
    "answers to packets from outside",
    "packets that another program moves after output",
    "frames that traffic control moves",
    "ARP for the tunnel's address",
    "stray sources into the tunnel",
)
HOLDS: dict[str, frozenset[str]] = {
    FILTERS: frozenset({PLAIN, BOUND, RAW, CONTAINER, ANSWERS, STRAYS}),
    POSTROUTING: frozenset({PLAIN, BOUND, RAW, CONTAINER, ANSWERS, MOVED, STRAYS}),
    GUARD: frozenset({PLAIN, BOUND, RAW, CONTAINER, ANSWERS, MOVED}),
    EGRESS: frozenset({PLAIN, BOUND, RAW, FRAME, MACVLAN, CONTAINER, ANSWERS, MOVED, ARP}),
    FRAMES: frozenset({PLAIN, BOUND, RAW, FRAME, MACVLAN, CONTAINER, ANSWERS, MOVED}),
    TRAFFIC: frozenset({REDIRECTED}),
    ROUTING: frozenset({PLAIN, RAW, CONTAINER, ANSWERS, MOVED}),
    ARP_TABLE: frozenset({ARP}),
    ARP_SETTINGS: frozenset({ARP}),
}
"""The kinds of traffic that each layer stops alone. It lets the other kinds pass, and another layer stops them."""
KINDS = (PLAIN, BOUND, RAW, FRAME, MACVLAN, CONTAINER, ANSWERS, MOVED, REDIRECTED, ARP, STRAYS)


def render_table() -> list[str]:
    """The table for the documents."""
    lines = ["| | " + " | ".join(HOLDS) + " |", "| --- |" + " --- |" * len(HOLDS)]
    for kind in KINDS:
        cells = ["stops" if kind in held else "" for held in HOLDS.values()]
        lines += [f"| {kind} | {' | '.join(cells)} |"]
    return lines
