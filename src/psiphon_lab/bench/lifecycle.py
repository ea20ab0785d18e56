# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Starting, stopping and reopening, beside the bare core's own start and stop in the same round."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from psiphon_lab.bare_core import measure_launch
from psiphon_lab.bench.model import Goal, Title
from psiphon_lab.bench.paired import Comparison
from psiphon_lab.bench.sides import Product
from psiphon_lab.bench.steps import Bench, Family, Settings, Step
from psiphon_lab.bench.times import (
    measure_changed,
    measure_closed,
    measure_killed,
    measure_started,
    measure_stopped,
    measure_woken,
    move,
    replug,
)

MOVES = 5
"""Changes of network in a row; the service has had a reason to wait after so many."""
START_GOAL, REOPEN_GOAL = Goal(bound=100.0), Goal(bound=1000.0)
CLOSE_GOAL = Goal(bound=10.0, absolute=True)
STARTED = "start, by the command"
ASKED = "start, by its request alone"
STOPPED = "stop, by the command"
CLOSED = "closed after the loss of the link"
SERIES = f"reopened after the {MOVES}th move in a row"
REOPENED: dict[str, Callable[[Product], float]] = {
    "reopened after a move to another network": partial(measure_changed, change=move),
    "reopened after the cable was pulled and put in": partial(measure_changed, change=replug),
    "reopened after the core was killed": measure_killed,
    "reopened after sleep": measure_woken,
}


def _title(name: str, goal: Goal | None = None) -> Title:
    return Title(family=FAMILY.name, name=name, unit="ms", comparison=Comparison.DIFFERENCE, goal=goal)


def _start_bare(bench: Bench) -> float:
    """The bare core's own start to a page, without the time that any program takes to start there; milliseconds."""
    bare = bench.sides.bare
    return (bare.core.measure_start() - measure_launch(bare.world)) * 1000


def _measure_start(bench: Bench, *, command: bool) -> None:
    product = bench.sides.product
    base = _start_bare(bench)
    took = measure_started(product, command=command)
    bench.report.add(_title(STARTED if command else ASKED, START_GOAL), base, took)


def _measure_stop(bench: Bench) -> None:
    bare = bench.sides.bare
    base = bare.core.measure_stop() * 1000
    bare.core.measure_start()
    bench.report.add(_title(STOPPED), base, measure_stopped(bench.sides.product))


def _measure_close(bench: Bench) -> None:
    product = bench.sides.product
    bench.report.add(_title(CLOSED, CLOSE_GOAL), None, measure_closed(product))
    product.restart()


def _measure_reopen(bench: Bench, *, name: str) -> None:
    product = bench.sides.product
    base = _start_bare(bench)
    bench.report.add(_title(name, REOPEN_GOAL), base, REOPENED[name](product))
    product.restart()


def _measure_series(bench: Bench) -> None:
    product = bench.sides.product
    base = _start_bare(bench)
    found = [measure_changed(product, move) for _ in range(MOVES)]
    bench.report.add(_title(SERIES, REOPEN_GOAL), base, found[-1])
    product.restart()


def _warm_up(bench: Bench) -> None:
    """Once, for the byte code of the command."""
    measure_started(bench.sides.product, command=True)


def _plan(settings: Settings) -> list[Step]:
    return list(_list_steps(settings))


def _list_steps(settings: Settings) -> Iterator[Step]:
    yield Step(name="first start", seconds=3, run=_warm_up)
    for number in range(settings.rounds):
        of = f", round {number + 1}"
        yield Step(name=STARTED + of, seconds=2.5, run=partial(_measure_start, command=True))
        yield Step(name=ASKED + of, seconds=2.5, run=partial(_measure_start, command=False))
        yield Step(name=STOPPED + of, seconds=3, run=_measure_stop)
        yield Step(name=CLOSED + of, seconds=2.5, run=_measure_close)
        for name in REOPENED:
            yield Step(name=name + of, seconds=3.5, run=partial(_measure_reopen, name=name))
        if not settings.quick:
            yield Step(name=SERIES + of, seconds=18, run=_measure_series)


FAMILY = Family(name="times", summary="start, stop, and reopening after each kind of change", plan=_plan)
