# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Virtual computers for tests. Where they cannot be had, the tests are skipped and say why."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from psiphon_lab.booted.clone import fetch_wheels
from psiphon_lab.booted.trees import build_tree
from psiphon_lab.namespace import LabError
from psiphon_lab.vm.bench import Bench, Boot, open_bench
from psiphon_lab.vm.obstacles import find_obstacle
from psiphon_lab.vm.trees import VIRTUAL
from psiphon_lab.vm.watch import SHOTS, Seen, Watch

REPORT_VARIABLE = "PSIPHON_VPN_VM_REPORT"
"""Names a file for the figures, one JSON object a line."""
_BUILD_AND_TEST_SECONDS = 3600
_figures: list[dict[str, object]] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.vm)
            item.add_marker(pytest.mark.timeout(_BUILD_AND_TEST_SECONDS))


def note(scenario: str, seen: Seen, **figures: object) -> None:
    """Add a line to the report at the end of the run, and require that nothing leaked."""
    entry: dict[str, object] = {"scenario": scenario, **figures}
    entry |= {"frames": seen.frames, "leaks": len(seen.leaks), "kinds": dict(seen.kinds)}
    _figures.append(entry)
    if path := os.environ.get(REPORT_VARIABLE):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
    assert not seen.leaks, seen.leaks[:10]
    assert not seen.shots, sorted(seen.shots)[:10]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _figures:
        return
    terminalreporter.section("virtual computers")
    for entry in _figures:
        rest = ", ".join(f"{name} {value}" for name, value in entry.items() if name != "scenario")
        terminalreporter.write_line(f"{entry['scenario']}: {rest}")


@functools.cache
def _find_tree(name: str) -> Path | str:
    obstacle = find_obstacle()
    if obstacle is not None:
        return f"no virtual computer can be started here: {obstacle}"
    try:
        return build_tree(VIRTUAL[name])
    except LabError as error:
        return f"no tree of {name}: {error}"


class Virtual:
    """A virtual computer of the tests.

    Attributes:
        name: its system's and kernel's names, for the report.
        bare: what was seen without the lock. booted: the boot after that, which a power cut begins, with the lock.
    """

    def __init__(self, name: str, bench: Bench, bare: Seen, booted: Boot) -> None:
        self.name = name
        self.bench = bench
        self.bare = bare
        self.booted = booted


@pytest.fixture(scope="module", params=["debian-12", "debian-13"])
def virtual(request: pytest.FixtureRequest) -> Iterator[Virtual]:
    """A virtual computer with the service, open. Before, it was without a lock: the positive control of all tests."""
    tree = _find_tree(request.param)
    if isinstance(tree, str):
        pytest.skip(tree)
    try:
        wheels = fetch_wheels()
    except LabError as error:
        pytest.skip(str(error))
    with open_bench(tree, wheels) as bench:
        computer = bench.computer
        watch = Watch(computer, bench.server)
        computer.power_on()
        name = f"{request.param}, Linux {computer.run(['uname', '-r']).stdout.strip()}"
        bare = bench.control(watch)
        assert bare.leaks
        assert bare.shots == {shot.token for shot in SHOTS}
        bench.set_up()
        # Until then it is without a lock: the watch begins with the firmware.
        booted = bench.boot(lambda: computer.reset(wait=False), from_start=True)
        yield Virtual(name, bench, bare, booted)


@pytest.fixture
def bench(virtual: Virtual) -> Bench:
    """The same, found open."""
    virtual.bench.wait_open()
    return virtual.bench
