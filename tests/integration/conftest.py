# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tests against the kernel share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.integration.kernel import Kernel, open_kernel
from tests.integration.testbed import Testbed, open_testbed


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    """A network namespace of this test's own."""
    with open_kernel() as made:
        yield made


@pytest.fixture(scope="module")
def module_testbed() -> Iterator[Testbed]:
    """A world with the service open, shared by all tests of a module; each module decides how a test finds it."""
    with open_testbed() as made:
        yield made


@pytest.fixture
def reopened_testbed(module_testbed: Testbed) -> Iterator[Testbed]:
    """The module's testbed, open again whatever the previous test did."""
    module_testbed.set_faults()
    module_testbed.machine.write_config()
    module_testbed.machine.command("reload")
    module_testbed.machine.command("restart")
    module_testbed.machine.wait_state("OPEN")
    module_testbed.machine.wait_for(module_testbed.machine.lease_remains, "the lease")
    yield module_testbed
    module_testbed.set_faults()
