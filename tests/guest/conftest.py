# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Machines with kernels of Debian's own, under QEMU. Where they cannot be had, the tests are skipped and say why."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from psiphon_lab.guest.kernels import SUITES, Kernel, fetch_kernel
from psiphon_lab.guest.obstacles import find_obstacle
from psiphon_lab.namespace import LabError

_FETCH_AND_TEST_SECONDS = 900


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.guest)
            if item.get_closest_marker("timeout") is None:
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


def find_kernel_or_skip(name: str) -> Kernel:
    """A kernel by its suite or its name for users; the test is skipped where it cannot be had."""
    found = _find_kernel(name)
    if isinstance(found, str):
        pytest.skip(found)
    return found


@pytest.fixture(scope="session", params=SUITES)
def kernel(request: pytest.FixtureRequest) -> Kernel:
    """The kernel of each suite in turn."""
    return find_kernel_or_skip(request.param)
