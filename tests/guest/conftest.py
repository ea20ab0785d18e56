"""Machines with kernels of Debian's own, under QEMU. Where they cannot be had, the tests are skipped and say why."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from psiphon_lab.guest.ability import find_obstacle
from psiphon_lab.guest.kernels import SUITES, Kernel, fetch_kernel
from psiphon_lab.namespace import LabError

_FETCH_AND_TEST_SECONDS = 900


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.guest)
            item.add_marker(pytest.mark.timeout(_FETCH_AND_TEST_SECONDS))


@functools.cache
def _find_kernel(suite: str) -> Kernel | str:
    obstacle = find_obstacle()
    if obstacle is not None:
        return f"no guest can be started here: {obstacle}"
    try:
        return fetch_kernel(suite)
    except LabError as error:
        return f"no kernel of {suite}: {error}"


@pytest.fixture(scope="session", params=SUITES)
def kernel(request: pytest.FixtureRequest) -> Kernel:
    """The kernel of each suite in turn."""
    found = _find_kernel(request.param)
    if isinstance(found, str):
        pytest.skip(found)
    return found
