# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What is started as a program: the boot lock beside an empty table, and `status` beside the bare interpreter."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from psiphon_lab.bench.model import Goal, Title
from psiphon_lab.bench.paired import Comparison
from psiphon_lab.bench.steps import Bench, Family, Settings, Step
from psiphon_lab.bench.times import BYTE_CODE
from psiphon_lab.machine import LAB_UID
from psiphon_lab.namespace import Host, LabError
from psiphon_lab.service_adapter.boot_lock import make_identity, render_boot_rules
from psiphon_lab.service_adapter.daemon import build_quick_command

TRIES = 3
"""In each round; the fastest counts, since anything else only delays."""
BOOT = "boot lock"
STATUS = "status"
EMPTY = "add table inet psiphon_empty\ndelete table inet psiphon_empty\ntable inet psiphon_empty {\n}\n"


def _time(host: Host, argv: Sequence[str | Path]) -> float:
    """Milliseconds of the fastest try, without the entering of the host's namespaces."""
    found = []
    for _ in range(TRIES):
        begin = time.monotonic()
        host.run(["true"])
        entered = time.monotonic()
        done = host.run(argv, check=False)
        if done.returncode != 0:
            raise LabError(f"code {done.returncode}: {done.stdout[:100]}")
        found.append((time.monotonic() - entered) - (entered - begin))
    return min(found) * 1000


def _measure_boot(bench: Bench, *, number: int) -> None:
    # On the neighbour: it is a host of its own, and needs no rules.
    world = bench.sides.product.world
    host, directory = world.neighbour, world.directory
    files = []
    for name, rules in (("empty.nft", EMPTY), ("boot.nft", render_boot_rules(make_identity(LAB_UID)))):
        files.append(directory / name)
        files[-1].write_text(rules, encoding="utf-8")
    order = files if number % 2 == 0 else files[::-1]
    found = {path.name: _time(host, ["nft", "-f", path]) for path in order}
    host.run(["nft", "flush", "ruleset"])
    title = Title(family=FAMILY.name, name=BOOT, unit="ms", comparison=Comparison.DIFFERENCE, base="an empty table")
    bench.report.add(title, found["empty.nft"], found["boot.nft"])


def _measure_status(bench: Bench, *, number: int) -> None:
    product = bench.sides.product
    product.read_core()
    machine = product.machine
    quick = build_quick_command(machine.runtime_dir, machine.state_dir / BYTE_CODE)
    bare, status = [sys.executable, "-IS", "-c", "pass"], [*quick, "status"]
    order = [bare, status] if number % 2 == 0 else [status, bare]
    found = {len(argv): _time(machine.client, argv) for argv in order}
    title = Title(family=FAMILY.name, name=STATUS, unit="ms", base="the interpreter", goal=Goal(bound=4.0))
    bench.report.add(title, found[len(bare)], found[len(status)])


def _plan(settings: Settings) -> list[Step]:
    steps = []
    for number in range(settings.rounds):
        of = f", round {number + 1}"
        steps.append(Step(name=BOOT + of, seconds=1, run=partial(_measure_boot, number=number)))
        steps.append(Step(name=STATUS + of, seconds=1.5, run=partial(_measure_status, number=number)))
    return steps


FAMILY = Family(name="commands", summary="the boot lock and `status`", plan=_plan)
