# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tests against the kernel share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.integration.kernel import Kernel, open_kernel
from tests.integration.stage import Stage, open_stage


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    """A network namespace of this test's own."""
    with open_kernel() as made:
        yield made


@pytest.fixture(scope="module")
def module_stage() -> Iterator[Stage]:
    """A world with the service open, shared by all tests of a module; each module decides how a test finds it."""
    with open_stage() as made:
        yield made


@pytest.fixture
def reopened_stage(module_stage: Stage) -> Iterator[Stage]:
    """The module's stage, open again whatever the previous test did."""
    module_stage.set_faults()
    module_stage.machine.write_config()
    module_stage.machine.command("reload")
    module_stage.machine.command("restart")
    module_stage.machine.wait_state("OPEN")
    module_stage.machine.wait_for(module_stage.machine.lease_remains, "the lease")
    yield module_stage
    module_stage.set_faults()
