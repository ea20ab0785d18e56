"""Real Debian systems for tests. Where they cannot be had, the tests are skipped and say why."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from psiphon_vpn.lab.booted.ability import find_obstacle
from psiphon_vpn.lab.booted.computer import Computer
from psiphon_vpn.lab.booted.trees import DEBIAN_11, DEBIAN_12, DEBIAN_13, Suite, build_tree
from psiphon_vpn.lab.namespace import LabError
from psiphon_vpn.lab.world import World

SUITES = {"debian11": DEBIAN_11, "debian12": DEBIAN_12, "debian13": DEBIAN_13}
_BUILD_AND_TEST_SECONDS = 1500


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.booted)
            item.add_marker(pytest.mark.timeout(_BUILD_AND_TEST_SECONDS))


@functools.cache
def _build_all() -> dict[str, Path | LabError]:
    """All trees, side by side: the time of the slowest instead of the sum."""
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


@pytest.fixture(params=["debian12", "debian13"])
def tree(request: pytest.FixtureRequest) -> Path:
    """A Debian with all that a desktop's network consists of."""
    return find_tree_or_skip(request.param)


@pytest.fixture
def computer(tree: Path) -> Iterator[Computer]:
    """A computer that is off, in a world of its own."""
    with World() as world, Computer(world, tree) as made:
        yield made
