# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Growth: flows, interfaces, foreign rules, routes and foreign commits, from one to very many."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial

from psiphon_lab.bench.latency import measure_ping
from psiphon_lab.bench.model import Growth
from psiphon_lab.bench.processor import read_resident, read_total_time
from psiphon_lab.bench.sides import Product, hold_flows
from psiphon_lab.bench.steps import Bench, Family, Settings, Step
from psiphon_lab.bench.throughput import Case, measure_transfer
from psiphon_lab.bench.times import measure_changed, move
from psiphon_lab.namespace import Host, LabError
from psiphon_lab.waiting import wait_until

ROUNDS = 5
QUICK_ROUNDS = 1
SHORT_SECONDS = 6.0
QUIET_SECONDS = 0.6
"""The daemon has dealt with something when it has needed no processor for so long."""
REST = 0.004
"""What it needs in such a time for its own routine, seconds."""
FOREIGN_TABLE = "stranger"
LIMIT = 200.0


def _points(most: int, *, quick: bool) -> list[int]:
    """Powers of ten."""
    powers = [10**power for power in range(7) if 10**power <= most]
    return powers[:3] if quick else powers


def _title(number_of: str, name: str, unit: str) -> Growth:
    return Growth(family=FAMILY.name, name=f"{name}, by {number_of}", unit=unit, number_of=number_of)


def wait_quiet(product: Product) -> float:
    """Wait until the daemon has dealt with everything; returns its processor time so far, seconds."""
    pid = product.machine.daemon_pid
    last = [read_total_time(pid)]

    def rests() -> bool:
        now = read_total_time(pid)
        spent, last[0] = now - last[0], now
        return spent < REST

    wait_until(rests, "the daemon rests", pause=QUIET_SECONDS, timeout=LIMIT)
    return last[0]


def _spend(product: Product, act: Callable[[], object]) -> float:
    """Processor time of the daemon, milliseconds, for something that is done to the machine."""
    before = wait_quiet(product)
    act()
    return (wait_quiet(product) - before) * 1000


def _add_reopening(bench: Bench, number_of: str, number: int) -> None:
    product = bench.sides.product
    product.restart()
    took = measure_changed(product, move)
    bench.report.add_growth(_title(number_of, "reopened after a move", "ms"), number, None, took)


def _add_commit_cost(bench: Bench, number_of: str, number: int) -> None:
    """What a single commit of another program costs the daemon."""
    product = bench.sides.product
    count = 0

    def act() -> None:
        nonlocal count
        count = _commit(product, rate=5, seconds=2)

    spent = _spend(product, act)
    title = _title(number_of, "daemon CPU of a foreign commit", "ms")
    bench.report.add_growth(title, number, None, spent / count)


def _commit(product: Product, *, rate: float, seconds: float) -> int:
    argv = [sys.executable, "-m", "psiphon_lab.bench.foreign", str(rate), str(seconds)]
    return int(product.machine.client.run(argv).stdout)


# -- flows ------------------------------------------------------------------------------------------------------------


def _grow_flows(bench: Bench, *, number: int, rounds: int) -> None:
    sides, quick = bench.sides, bench.settings.quick
    case = Case("tcp", "down", 1, 4)
    with hold_flows(sides.bare, number), hold_flows(sides.product, number):
        for turn in range(rounds):
            found = {}
            for side in (sides.bare, sides.product)[:: 1 if turn % 2 == 0 else -1]:
                spent = measure_transfer(side, case, quick=quick)["core"]
                found[side.device] = (spent, measure_ping(side, count=200)["p50"])
            base, own = found[sides.bare.device], found[sides.product.device]
            for position, (name, unit) in enumerate((("core CPU", "s/100 MB"), ("round trip", "µs"))):
                bench.report.add_growth(_title("flows", name, unit), number, base[position], own[position])


# -- interfaces -------------------------------------------------------------------------------------------------------


def _batch(host: Host, lines: list[str]) -> None:
    host.run(["ip", "-batch", "-"], input="".join(f"{line}\n" for line in lines))


def _grow_interfaces(bench: Bench, *, number: int, before: int, rounds: int) -> None:
    product = bench.sides.product
    client, far_end = product.world.client, product.world.container
    lines = []
    for index in range(before, number):
        peer = f"peer name more{index} netns {far_end.pid}"
        lines += [f"link add more{index} type veth {peer}", f"link set more{index} up"]

    def plug() -> None:
        _batch(client, lines)
        _batch(far_end, [f"link set more{index} up" for index in range(before, number)])

    spent = _spend(product, plug)
    report = bench.report
    report.add_growth(_title("interfaces", "daemon CPU of each new one", "ms"), number, None, spent / (number - before))
    for _ in range(rounds):
        _add_reopening(bench, "interfaces", number)
    report.add_growth(
        _title("interfaces", "daemon memory", "KiB"), number, None, read_resident(product.machine.daemon_pid)
    )


# -- foreign rules ----------------------------------------------------------------------------------------------------


def _grow_rules(bench: Bench, *, number: int, rounds: int) -> None:
    product = bench.sides.product
    rules = "".join(f"ip saddr 198.18.{rule >> 8 & 255}.{rule & 255} counter\n" for rule in range(number))
    table = f"table inet {FOREIGN_TABLE}_rules"
    text = f"{table}\ndelete {table}\n{table} {{\nchain many {{\n{rules}}}\n}}\n"
    product.machine.client.run(["nft", "-f", "-"], input=text)
    for _ in range(rounds):
        _add_commit_cost(bench, "foreign rules", number)
        _add_reopening(bench, "foreign rules", number)


# -- routes -----------------------------------------------------------------------------------------------------------


def _grow_routes(bench: Bench, *, number: int, before: int, rounds: int) -> None:
    product, report = bench.sides.product, bench.report
    lines = [
        f"route add 10.{128 + (route >> 16)}.{route >> 8 & 255}.{route & 255}/32 dev ctr0"
        for route in range(before, number)
    ]
    spent = _spend(product, partial(_batch, product.world.client, lines))
    title = _title("routes", "daemon CPU of each new one", "ms")
    report.add_growth(title, number, None, spent / (number - before))
    for _ in range(rounds):
        _add_reopening(bench, "routes", number)
    memory = read_resident(product.machine.daemon_pid)
    report.add_growth(_title("routes", "daemon memory", "KiB"), number, None, memory)


# -- foreign commits --------------------------------------------------------------------------------------------------


def _grow_commits(bench: Bench, *, number: int, rounds: int) -> None:
    product = bench.sides.product
    seconds = 2.0 if bench.settings.quick else SHORT_SECONDS
    for _ in range(rounds):
        pid = product.machine.daemon_pid
        before, begin = wait_quiet(product), time.monotonic()
        count = _commit(product, rate=number, seconds=seconds)
        took = time.monotonic() - begin
        spent = read_total_time(pid) - before
        if count < 0.8 * number * seconds:
            raise LabError(f"only {count} commits in {seconds:g} s")
        title = _title("foreign commits a second", "daemon CPU", "% of a processor")
        bench.report.add_growth(title, number, None, spent / took * 100)
        title = _title("foreign commits a second", "daemon memory", "KiB")
        bench.report.add_growth(title, number, None, read_resident(pid))
        if (product.machine.read_status() or {}).get("state") != "OPEN":
            title = _title("foreign commits a second", "not open any more afterwards", "times")
            bench.report.add_growth(title, number, None, 1)


def _plan(settings: Settings) -> list[Step]:
    quick, rounds = settings.quick, QUICK_ROUNDS if settings.quick else min(ROUNDS, settings.rounds)
    steps = [
        Step(
            name=f"{number} foreign commits a second",
            seconds=rounds * (SHORT_SECONDS + 2),
            run=partial(_grow_commits, number=number, rounds=rounds),
        )
        for number in _points(1_000, quick=quick)
    ]
    steps += [
        Step(
            name=f"{number} flows",
            seconds=rounds * 8 + number * 0.002,
            run=partial(_grow_flows, number=number, rounds=rounds),
        )
        for number in _points(10_000, quick=quick)
    ]
    steps += [
        Step(
            name=f"{number} foreign rules",
            seconds=rounds * 10,
            run=partial(_grow_rules, number=number, rounds=rounds),
        )
        for number in _points(10_000, quick=quick)
    ]
    for what, most, grow in (("interfaces", 1_000, _grow_interfaces), ("routes", 100_000, _grow_routes)):
        before = 0
        for number in _points(most, quick=quick):
            steps.append(
                Step(
                    name=f"{number} {what}",
                    seconds=rounds * 5 + 3,
                    run=partial(grow, number=number, before=before, rounds=rounds),
                )
            )
            before = number
    return steps


FAMILY = Family(
    name="growth", summary="many flows, interfaces, foreign rules, routes, foreign commits", plan=_plan, apart=True
)
