# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes docs/ways_out.md from what tests/guest/test_ways_out.py reported. A test holds the page to docs/ways_out.json.

`python -m tests.ways_page FILE...` first puts the lines of such runs (PSIPHON_VPN_WAYS_REPORT names the file)
into docs/ways_out.json, in place of earlier ones about the same thing on the same kernel. Without files it only writes
the page.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from tests.kernels_page import sort_key

DOCS: Final = Path(__file__).parents[1] / "docs"
PAGE: Final = DOCS / "ways_out.md"
DATA: Final = DOCS / "ways_out.json"
HEAD: Final = """# Ways out

What was tried on Debian's own kernels in virtual machines (QEMU, emulated), because it needs modules that network
namespaces of a development machine may lack. This page is made from runs (`docs/ways_out.json`, by
`python -m tests.ways_page`). What was not run is not in it.

Frames are counted at the far ends of the machine's cables, outside of it. *Control*: without the lock. *Locked*: boot
lock and guards, no daemon. *Service*: with the service, from when its tunnel was open; a device that a way makes may
have it connect again. Then only the tunnel's own flow and the link's plumbing may come out. Numbers are frames of the
attempts that came out. The programs in the machine are those of the machine that ran the test, the tunnel program and
its server are stand-ins.

"""
Row = Mapping[str, Any]


def merge(rows: Iterable[Row], more: Iterable[Row]) -> list[dict[str, Any]]:
    """Rows about the same way on the same kernel are one; later values count."""
    known: dict[tuple[str, str], dict[str, Any]] = {}
    for row in (*rows, *more):
        known.setdefault((row["name"], row["kernel"]), {}).update(row)
    return sorted(known.values(), key=lambda row: sort_key(row["kernel"]))


def judge_way(row: Row) -> str:
    """What one way showed on one kernel."""
    if not row.get("control") or row.get("locked") is None:
        return "unproven"
    if row.get("open") is None:
        return (
            "**leaks** while locked; not tried with the service"
            if row["locked"]
            else "held while locked; not tried with the service"
        )
    if row["locked"] or row["open"]:
        return "**leaks**" if row["beyond"] else "**LEAK**"
    return "held"


def _short(kernel: str) -> str:
    return kernel.partition("-")[0].partition("+")[0]


def render(rows: Iterable[Row]) -> str:
    """The page."""
    lines = ["| Way | Kernel | Control | Locked | Service | |", "| --- | --- | --- | --- | --- | --- |"]
    by_name: dict[str, list[Row]] = {}
    for row in rows:
        by_name.setdefault(row["name"], []).append(row)
    for name, found in by_name.items():
        for row in found:
            counts = " | ".join(str(row.get(state, "")) for state in ("control", "locked", "open"))
            lines.append(f"| {name} | {_short(row['kernel'])} | {counts} | {judge_way(row)} |")
    beyond = {name: found[0]["beyond"] for name, found in by_name.items() if found[0]["beyond"]}
    lines += ["", "What leaks takes root, and meets no rule of the kernel:", ""]
    lines += [f"- {name}: {why}" for name, why in beyond.items()]
    return HEAD + "\n".join(lines) + "\n"


def main(paths: Iterable[str]) -> None:
    """Take results in, and write the page."""
    rows = json.loads(DATA.read_text(encoding="utf-8")) if DATA.exists() else []
    for path in paths:
        rows = merge(rows, map(json.loads, Path(path).read_text(encoding="utf-8").splitlines()))
    DATA.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(render(rows), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
