# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Latency, connections and DNS answers a second."""

from __future__ import annotations

import contextlib
import statistics
import threading
from collections.abc import Callable
from functools import partial

from psiphon_lab.bench.model import Goal, Title
from psiphon_lab.bench.paired import Comparison
from psiphon_lab.bench.sides import Side, run_load
from psiphon_lab.bench.steps import Bench, Family, Settings, Step
from psiphon_lab.namespace import LabError

PINGS, QUICK_PINGS = 600, 100
SECONDS, QUICK_SECONDS = 1.5, 0.5
WORKERS = 8
BUSY_SECONDS = 1.5
START_SECONDS = 0.5


def measure_ping(side: Side, *, count: int, family: int = 4) -> dict[str, float]:
    """Median and 99th percentile of the round trip, microseconds."""
    times = run_load(side, "ping", count=count, family=family)["times"]
    if len(times) < count * 0.9:
        raise LabError(f"only {len(times)} of {count} datagrams came back")
    parts = statistics.quantiles(times, n=100, method="inclusive")
    return {"p50": parts[49] * 1000, "p99": parts[98] * 1000}


def _ping_busy(side: Side, *, count: int) -> dict[str, float]:
    """The same while one flow downloads."""
    about = {"protocol": "tcp", "direction": "down", "flows": 1, "warm": 0.0, "seconds": BUSY_SECONDS}
    load = threading.Thread(target=_swallow, args=(partial(run_load, side, "transfer", **about),))
    load.start()
    try:
        return measure_ping(side, count=count)
    finally:
        load.join()


def _swallow(run: Callable[[], object]) -> None:
    with contextlib.suppress(LabError):  # only a load
        run()


def _measure_rate(side: Side, *, kind: str, quick: bool, family: int = 4) -> dict[str, float]:
    """How often it worked a second, and the core's processor time for each, microseconds."""
    seconds = QUICK_SECONDS if quick else SECONDS
    found = run_load(side, kind, seconds=seconds, workers=WORKERS, family=family)
    if not found["worked"]:
        raise LabError(f"{kind}: nothing worked")
    return {"rate": found["worked"] / found["seconds"], "core": found["core"] / found["worked"] * 1e6}


def _name_ping(name: str) -> dict[str, Title]:
    return {
        part: Title(family=FAMILY.name, name=f"{name}: {part}", unit="µs", comparison=Comparison.DIFFERENCE)
        for part in ("p50", "p99")
    }


def _name_rate(name: str, *, goals: bool) -> dict[str, Title]:
    goal = Goal(bound=0.98, at_least=True) if goals else None
    rate = Title(family=FAMILY.name, name=f"{name} a second", unit="/s", more_is_better=True, goal=goal)
    return {"rate": rate, "core": Title(family=FAMILY.name, name=f"{name}: core CPU of each", unit="µs")}


def _plan(settings: Settings) -> list[Step]:
    quick, goals = settings.quick, settings.real is not None
    count, seconds = (QUICK_PINGS, QUICK_SECONDS) if quick else (PINGS, SECONDS)
    cases: list[tuple[str, float, Callable[[Side], dict[str, float]], dict[str, Title]]] = []
    for family in (4,) if quick else (4, 6):
        name = f"round trip, IPv{family}"
        cases.append((name, count * 0.001, partial(measure_ping, count=count, family=family), _name_ping(name)))
        name = f"TCP connections, IPv{family}"
        measure = partial(_measure_rate, kind="connect", quick=quick, family=family)
        cases.append((name, seconds, measure, _name_rate(name, goals=goals)))
    name = "round trip during a download"
    cases.append((name, BUSY_SECONDS, partial(_ping_busy, count=count // 2), _name_ping(name)))
    asked = partial(_measure_rate, kind="query", quick=quick)
    cases.append(("DNS answers", seconds, asked, _name_rate("DNS answers", goals=goals)))

    def run(bench: Bench, *, number: int, case: int) -> None:
        _name, _seconds, measure, titles = cases[case]
        bench.take_turns(number, measure, titles)

    return [
        Step(
            name=f"{name}, round {number + 1}",
            seconds=2 * (length + START_SECONDS),
            run=partial(run, number=number, case=case),
        )
        for number in range(settings.rounds)
        for case, (name, length, _measure, _titles) in enumerate(cases)
    ]


FAMILY = Family(name="latency", summary="round trips, connections and DNS answers a second", plan=_plan)
