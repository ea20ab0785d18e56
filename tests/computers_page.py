# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes docs/computers.md from what runs on virtual computers showed. A test holds the page to docs/computers.jsonl.

`python -m tests.computers_page FILE...` first puts the reports of runs (`PSIPHON_VPN_VM_REPORT`) into
docs/computers.jsonl, in place of earlier lines of the same scenario and system. Without files it only writes the page.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

DOCS: Final = Path(__file__).parents[1] / "docs"
PAGE: Final = DOCS / "computers.md"
DATA: Final = DOCS / "computers.jsonl"
HEAD: Final = """# Whole computers

What runs of `tests/vm` showed: whole Debian systems with their own kernel and disk, which really boot, sleep and lose
their power, while [storms](architecture.md#the-laboratory) send in 97 ways from early at each boot. This page is made
from those runs (`docs/computers.jsonl`, by `python -m tests.computers_page`). A scenario of `tests/vm` without a row
has not been shown.

The captures are outside the computer, and count every frame from the firmware on, or from before a sleep. Each system
was first run without the lock: then every one of the 97 shots was seen outside, at a boot and again after a sleep.

The processor is emulated, on a busy machine: it is far slower than a real one, so the seconds compare one scenario
with another and say nothing about a real computer. *Lock* and *first frame* count from the power, *reopened* and
*first frame* from the wake-up. *Unattended* frames left after the wake-up and before the core's first; the last
column says what they and all others were. No virtual computer shows a real firmware, or chips for Wi-Fi and mobile
networks.

"""
COLUMNS: Final = {
    "frames": "Frames",
    "leaks": "Leaks",
    "lock_seconds": "Lock, s",
    "first_frame_seconds": "First frame, s",
    "reopened_seconds": "Reopened, s",
    "unattended": "Unattended",
}
Run = Mapping[str, Any]


def read_runs(lines: Iterable[str]) -> list[Run]:
    """The reports in lines of JSON."""
    return [json.loads(line) for line in lines if line.strip()]


def join_runs(runs: Iterable[Run]) -> list[Run]:
    """The last report of each scenario and system, in the order in which they first came."""
    joined: dict[tuple[str, str], Run] = {}
    for run in runs:
        joined[run["scenario"], run["system"]] = run
    return list(joined.values())


def _render_value(value: object) -> str:
    return "" if value is None else str(value)


def render(runs: Iterable[Run]) -> str:
    """The page."""
    runs = list(runs)
    lines = []
    for system in dict.fromkeys(run["system"] for run in runs):
        lines += [f"## {system}", "", f"| Scenario | {' | '.join(COLUMNS.values())} | What they were |"]
        lines.append(f"| --- |{' --- |' * (len(COLUMNS) + 1)}")
        for run in runs:
            if run["system"] == system:
                kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(run["kinds"].items()))
                cells = " | ".join(_render_value(run.get(name)) for name in COLUMNS)
                lines.append(f"| {run['scenario']} | {cells} | {kinds} |")
        lines.append("")
    return HEAD + "\n".join(lines).rstrip() + "\n"


def main(paths: Iterable[str]) -> None:
    """Take reports in, and write the page."""
    runs = read_runs(DATA.read_text(encoding="utf-8").splitlines()) if DATA.exists() else []
    for path in paths:
        runs += read_runs(Path(path).read_text(encoding="utf-8").splitlines())
    runs = join_runs(runs)
    DATA.write_text("".join(f"{json.dumps(run)}\n" for run in runs), encoding="utf-8")
    PAGE.write_text(render(runs), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
