# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Throughput: TCP and UDP, both directions, one flow and sixteen, both families."""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import NamedTuple

from psiphon_lab.bench.model import Goal, Title
from psiphon_lab.bench.sides import Side, run_load
from psiphon_lab.bench.steps import Bench, Family, Settings, Step
from psiphon_lab.namespace import LabError

SECONDS, WARM = 1.2, 0.4
QUICK_SECONDS, QUICK_WARM = 0.6, 0.3
START_SECONDS = 0.5
UNIT_BYTES = 100e6
RATE_GOAL, CPU_GOAL = Goal(bound=0.98, at_least=True), Goal(bound=1.03)


class Case(NamedTuple):
    """One way to transfer."""

    protocol: str
    direction: str
    flows: int
    family: int

    @property
    def name(self) -> str:
        """For people."""
        flows = "1 flow" if self.flows == 1 else f"{self.flows} flows"
        return f"{self.protocol.upper()} {self.direction}, {flows}, IPv{self.family}"


def list_cases(*, quick: bool) -> list[Case]:
    """All of them, or one flow of IPv4 only."""
    numbers, families = ((1,), (4,)) if quick else ((1, 16), (4, 6))
    return [Case(*case) for case in product(("tcp", "udp"), ("down", "up"), numbers, families)]


def measure_transfer(side: Side, case: Case, *, quick: bool) -> dict[str, float]:
    """Rate in Mbit/s, and processor time of core and application in seconds per 100 MB."""
    seconds, warm = (QUICK_SECONDS, QUICK_WARM) if quick else (SECONDS, WARM)
    found = run_load(side, "transfer", **case._asdict(), seconds=seconds, warm=warm)
    if not found["bytes"]:
        raise LabError(f"no byte arrived: {case.name}")
    part = UNIT_BYTES / found["bytes"]
    return {
        "rate": found["bytes"] * 8 / 1e6 / found["seconds"],
        "core": found["core"] * part,
        "own": found["own"] * part,
    }


def make_titles(family: str, name: str, *, goals: bool) -> dict[str, Title]:
    """The titles of what `measure_transfer` returns."""
    unit = "s/100 MB"
    rate, cpu = (RATE_GOAL, CPU_GOAL) if goals else (None, None)
    return {
        "rate": Title(family=family, name=f"{name}: rate", unit="Mbit/s", more_is_better=True, goal=rate),
        "core": Title(family=family, name=f"{name}: core CPU", unit=unit, goal=cpu),
        "own": Title(family=family, name=f"{name}: application CPU", unit=unit),
    }


def _run(bench: Bench, *, number: int, case: Case) -> None:
    settings = bench.settings
    bench.take_turns(
        number,
        partial(measure_transfer, case=case, quick=settings.quick),
        make_titles(FAMILY.name, case.name, goals=settings.real is not None),
    )


def _plan(settings: Settings) -> list[Step]:
    length = sum((QUICK_SECONDS, QUICK_WARM) if settings.quick else (SECONDS, WARM)) + START_SECONDS
    return [
        Step(name=f"{case.name}, round {number + 1}", seconds=2 * length, run=partial(_run, number=number, case=case))
        for number in range(settings.rounds)
        for case in list_cases(quick=settings.quick)
    ]


FAMILY = Family(name="throughput", summary="rate, and processor time per 100 MB", plan=_plan)


def _run_control(bench: Bench, *, number: int) -> None:
    case = Case("tcp", "down", 1, 4)
    sides = [bench.sides.bare, bench.twin]
    found = [measure_transfer(side, case, quick=bench.settings.quick) for side in (sides, sides[::-1])[number % 2]]
    bare, twin = found if number % 2 == 0 else found[::-1]
    for name, title in make_titles(CONTROL.name, f"two bare cores, {case.name}", goals=False).items():
        bench.report.add(title, bare[name], twin[name])


def _plan_control(settings: Settings) -> list[Step]:
    length = sum((QUICK_SECONDS, QUICK_WARM) if settings.quick else (SECONDS, WARM)) + START_SECONDS
    return [
        Step(name=f"two bare cores, round {number + 1}", seconds=2 * length, run=partial(_run_control, number=number))
        for number in range(settings.rounds)
    ]


CONTROL = Family(
    name="control", summary="two bare cores beside each other: what differs is the instrument", plan=_plan_control
)
