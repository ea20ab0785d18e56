# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Real Debian systems for tests. If none can be booted here, the tests are skipped and say why."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from psiphon_lab.booted.clone import fetch_wheels
from psiphon_lab.booted.computer import Computer
from psiphon_lab.booted.obstacles import find_obstacle
from psiphon_lab.booted.prober import Watched
from psiphon_lab.booted.session import Session, open_session
from psiphon_lab.booted.trees import DEBIAN_11, DEBIAN_12, DEBIAN_13, Suite, build_tree
from psiphon_lab.namespace import LabError
from psiphon_lab.tunnel_ends import RealPrograms
from psiphon_lab.world import World

SUITES = {"debian11": DEBIAN_11, "debian12": DEBIAN_12, "debian13": DEBIAN_13}
VARIANTS = [("debian12", "NetworkManager"), ("debian13", "systemd-networkd")]
REPORT_VARIABLE = "PSIPHON_VPN_BOOTED_REPORT"
"""Names a file for the figures, one JSON object a line."""
_BUILD_AND_TEST_SECONDS = 2400
_figures: list[dict[str, object]] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.booted)
            item.add_marker(pytest.mark.timeout(_BUILD_AND_TEST_SECONDS))


def note(scenario: str, **figures: object) -> None:
    """Add a line to the report at the end of the run."""
    _figures.append({"scenario": scenario, **figures})


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _figures:
        return
    terminalreporter.section("booted systems")
    for entry in _figures:
        rest = ", ".join(f"{name} {value}" for name, value in entry.items() if name != "scenario")
        terminalreporter.write_line(f"{entry['scenario']}: {rest}")
    if path := os.environ.get(REPORT_VARIABLE):
        Path(path).write_text("".join(json.dumps(entry) + "\n" for entry in _figures), encoding="utf-8")


@functools.cache
def _build_all() -> dict[str, Path | LabError]:
    """Build all trees in parallel: that takes as long as the slowest one."""
    found: dict[str, Path | LabError] = {}

    def build(suite: Suite) -> None:
        try:
            found[suite.name] = build_tree(suite)
        except LabError as error:
            found[suite.name] = error

    threads = [threading.Thread(target=build, args=(suite,)) for suite in SUITES.values()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def find_tree_or_skip(name: str) -> Path:
    """The tree of a suite by its key in SUITES."""
    obstacle = find_obstacle()
    if obstacle is not None:
        pytest.skip(f"no system can be booted here: {obstacle}")
    tree = _build_all()[SUITES[name].name]
    if isinstance(tree, LabError):
        pytest.skip(f"no tree of {name}: {tree}")
    return tree


@pytest.fixture(scope="session")
def wheels() -> Path:
    """The locked packages, for installations from a clone."""
    try:
        return fetch_wheels()
    except LabError as error:
        pytest.skip(str(error))


@pytest.fixture(params=["stand-ins", "real programs"])
def real(request: pytest.FixtureRequest) -> RealPrograms | None:
    """Both ends of the tunnel: the laboratory's stand-ins (None), and real programs, which a user provides."""
    if request.param == "stand-ins":
        return None
    core, server = (request.config.getoption(option) for option in ("--core", "--server"))
    if (core is None) != (server is None):
        raise pytest.UsageError("give --core and --server together")
    if core is None:
        pytest.skip("no real programs: --core PATH --server PATH")
    return RealPrograms(core=core.resolve(strict=True), server=server.resolve(strict=True))


@pytest.fixture(params=["debian12", "debian13"])
def tree(request: pytest.FixtureRequest) -> Path:
    """A Debian with all parts of a desktop's network."""
    return find_tree_or_skip(request.param)


@pytest.fixture
def computer(tree: Path) -> Iterator[Computer]:
    """A computer that is off, in a world of its own."""
    with World() as world, Computer(world, tree) as made:
        yield made


@contextlib.contextmanager
def start_session(variant: tuple[str, str], wheels: Path, *, short_leases: bool = False) -> Iterator[Session]:
    """A computer that is on and has addresses, but no lock yet, after its positive control."""
    suite, manager = variant
    tree = find_tree_or_skip(suite)
    with open_session(tree, wheels, manager=manager, short_leases=short_leases) as session:
        session.computer.power_on()
        session.computer.wait_address()
        assert not session.control(), "without a lock, every probe must be seen outside"
        yield session


@contextlib.contextmanager
def scenario(session: Session, name: str) -> Iterator[Watched]:
    """Probe during the block, require that nothing leaks, and add the result to the report."""
    with session.watch() as watched:
        yield watched
    note(
        name,
        system=session.name,
        probes=watched.probes,
        frames=watched.frames,
        leaks=len(watched.leaks),
        kinds=dict(watched.kinds),
    )
    assert not watched.leaks, watched.leaks[:10]
    assert not watched.seen, watched.seen[:10]
    assert not watched.uncontrolled
    assert watched.probes > 0
