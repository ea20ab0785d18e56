# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs the steps of the chosen families and keeps what they found, with the load of the machine meanwhile."""

from __future__ import annotations

import contextlib
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from psiphon_lab.bench.model import Report
from psiphon_lab.bench.steps import Bench, Family, Settings
from psiphon_lab.namespace import LabError
from psiphon_lab.revision import read_commit
from psiphon_vpn import __version__

STAND_INS, REAL_PROGRAMS = "stand-ins over a fast carrier", "psiphon-tunnel-core and psiphond"
WORDS = 200
"""Of the first and the last line of an error."""
Progress = Callable[[str, float, float], None]
"""Called before each step with its name, the seconds so far, and about how many are left."""


def run_families(families: Sequence[Family], settings: Settings, *, tell: Progress) -> Report:
    """Run them. A step that fails is noted in the report, and the next one has new worlds.

    An interrupt (Ctrl+C) ends the run; the report has what was measured until then.
    """
    report = Report()
    plans = {family.name: family.plan(settings) for family in families}
    expected = sum(step.seconds for steps in plans.values() for step in steps)
    begin, done, loads, begun = time.monotonic(), 0.0, [os.getloadavg()[0]], []
    with contextlib.suppress(KeyboardInterrupt), Bench(settings, report) as bench:
        for family in families:
            begun.append(family.name)
            if family.apart:
                bench.close_sides()
            for step in plans[family.name]:
                so_far = time.monotonic() - begin
                left = (expected - done) * (so_far / done if done > 30 else 1.0)
                tell(f"{family.name}: {step.name}", so_far, left)
                try:
                    step.run(bench)
                except (LabError, OSError, subprocess.SubprocessError) as error:
                    report.failures[f"{family.name}: {step.name}"] = _shorten(error)
                    bench.close_sides()
                done += step.seconds
                loads.append(os.getloadavg()[0])
            if family.apart:
                bench.close_sides()
    report.about = describe_machine(settings) | {
        "families": begun,
        "seconds": round(time.monotonic() - begin),
        "load": {"least": min(loads), "median": statistics.median(loads), "most": max(loads)},
    }
    return report


def _shorten(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    words = [lines[0][:WORDS], *([lines[-1][:WORDS]] if len(lines) > 1 else [])]
    return f"{error.__class__.__name__}: {' ... '.join(words)}"


def describe_machine(settings: Settings) -> dict[str, Any]:
    """Where and with what."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "when": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "programs": STAND_INS if settings.real is None else REAL_PROGRAMS,
        "rounds": settings.rounds,
        "quick": settings.quick,
        "kernel": platform.release(),
        "processor": model,
        "processors": os.cpu_count() or 0,
        "python": platform.python_version(),
        "version": __version__,
        "commit": read_commit(),
    }
