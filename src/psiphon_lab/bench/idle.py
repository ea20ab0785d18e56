# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What an open and idle service costs: memory, processor, wake-ups."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

from psiphon_lab.bench.model import Goal, Title
from psiphon_lab.bench.processor import read_processor_time, read_resident, read_total_time
from psiphon_lab.bench.sides import WAKE_UPS, Product
from psiphon_lab.bench.steps import Bench, Family, Settings, Step

SECONDS, QUICK_SECONDS = 16.0, 4.0
"""The daemon asks the tunnel every 16 seconds, so each round has one question."""
SETTLE_SECONDS = 6.0
"""What follows a status and a page takes less; the check for IPv6 is waited for."""
OPENING_SECONDS = 25.0
"""The last timer of an opening runs out after 24 seconds at most."""
MEMORY = "the daemon's memory"
PROCESSOR = "the daemon's processor time"
WAKING = "the daemon's wake-ups"
CORE = "the core's processor time"


def _title(name: str, unit: str, bound: float | None = None) -> Title:
    goal = None if bound is None else Goal(bound=bound, absolute=True)
    return Title(family=FAMILY.name, name=name, unit=unit, goal=goal)


def settle(product: Product, *, seconds: float) -> None:
    """Wait until nothing of the last opening, or of what this asks itself, is left to do. seconds: the last wait."""
    machine = product.machine
    product.read_core()
    machine.wait_for(lambda: bool((machine.read_status() or {}).get("ipv6")), "IPv6")
    time.sleep(seconds)


def _measure(bench: Bench, *, seconds: float, settling: float) -> None:
    bare, product = bench.sides.bare, bench.sides.product
    daemon, cores = product.machine.daemon_pid, (bare.read_core(), product.read_core())
    settle(product, seconds=settling)  # after the last status and page, which the daemon is awake for
    counter = Path(product.machine.state_dir / WAKE_UPS)

    def read() -> tuple[float, float, int, float, float]:
        woken = int(counter.read_text(encoding="ascii"))
        return time.monotonic(), read_total_time(daemon), woken, *map(read_processor_time, cores)  # type: ignore[return-value]

    before = read()
    time.sleep(seconds)
    took, spent, woken, base, own = (now - then for then, now in zip(before, read(), strict=True))
    add = bench.report.add
    add(_title(MEMORY, "KiB", 40 * 1024), None, read_resident(daemon))
    add(_title(PROCESSOR, "% of a processor", 0.07), None, spent / took * 100)
    add(_title(WAKING, "/s", 0.7), None, woken / took)
    add(_title(f"{CORE}, bare", "% of a processor"), None, base / took * 100)
    add(_title(f"{CORE}, with the service", "% of a processor"), None, own / took * 100)


def _plan(settings: Settings) -> list[Step]:
    seconds, rounds = (QUICK_SECONDS, 1) if settings.quick else (SECONDS, min(settings.rounds, 6))
    steps = []
    for number in range(rounds):
        settling = SETTLE_SECONDS if number or settings.quick else OPENING_SECONDS
        run = partial(_measure, seconds=seconds, settling=settling)
        steps.append(Step(name=f"idle, round {number + 1}", seconds=seconds + settling, run=run))
    return steps


FAMILY = Family(name="idle", summary="memory, processor and wake-ups of an idle service", plan=_plan)
