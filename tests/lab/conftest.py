# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures of the laboratory's tests, which need root and namespaces, and make their own worlds."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from tests.lab.support import Tunnel, open_tunnel

from psiphon_lab.world import World


@pytest.fixture(autouse=True)
def _root_where_the_lab_is_used(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("lab") and os.geteuid() != 0:
        pytest.skip("the laboratory needs root")


@pytest.fixture
def world() -> Iterator[World]:
    """A fresh world for one test."""
    with World() as made:
        yield made


@pytest.fixture(scope="module")
def shared_world() -> Iterator[World]:
    """One world for the tests of a module that leave it as they found it."""
    with World() as made:
        yield made


@pytest.fixture(scope="module")
def _module_tunnel() -> Iterator[Tunnel]:
    with open_tunnel() as made:
        yield made


@pytest.fixture
def tunnel(_module_tunnel: Tunnel) -> Tunnel:
    """A world with a TUN interface and the stand-in server; the core is not started. Leave the world as it was."""
    _module_tunnel.begin()
    return _module_tunnel


@pytest.fixture
def fresh_tunnel() -> Iterator[Tunnel]:
    """The same in a separate world, for tests that change it."""
    with open_tunnel() as made:
        yield made
