# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The real daemon with a part that fails: it opens again by itself, and never says open without a lease.

Each kind of failure in each part is tried with fakes: tests/unit/test_parts_fail.py.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from tests.integration.testbed import Testbed, open_testbed

from psiphon_lab import addresses as plan
from psiphon_lab.waiting import wait_until

pytestmark = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="needs root and namespaces")]

FAILING = Path(__file__).with_name("failing_daemon.py")
TOLD = "a part of the service failed: "


def assert_honest(testbed: Testbed) -> None:
    """Fail if the status says open, before and after, and the kernel holds no lease in between."""
    before, held, after = testbed.machine.read_status(), testbed.machine.lease_remains(), testbed.machine.read_status()
    if before is not None and after is not None and before["state"] == after["state"] == "OPEN":
        assert held or before["since"] != after["since"], "open without a lease"


@pytest.mark.requirement("R3", "R24")
@pytest.mark.parametrize("number", [1, 2], ids=["in the verification", "while open"])
def test_one_question_that_cannot_be_asked_is_reported_and_it_opens_again(number: int) -> None:
    with open_testbed(start=False) as testbed:
        machine = testbed.machine
        machine.program = [str(FAILING), str(number)]
        machine.start_daemon()
        wait_until(lambda: TOLD in machine.read_log(), "the failure")
        machine.wait_state("OPEN")
        assert_honest(testbed)
        assert machine.lease_remains()
        assert testbed.page() == plan.SERVER4
        assert machine.read_log().count(TOLD) == 1


@pytest.mark.requirement("R3", "R24")
def test_without_a_descriptor_left_it_stays_honest_and_opens_again_once_there_are_some() -> None:
    """Then every part fails in its own way: sockets, programs, pidfds."""
    with open_testbed(start=False) as testbed:
        machine = testbed.machine
        machine.program = [str(FAILING), "0"]
        machine.start_daemon()
        machine.wait_state("OPEN")
        pid = machine.daemon_pid
        machine.signal_daemon(signal.SIGUSR1)
        # Opening then needs a reading back, which starts programs.
        testbed.world.client.run(["nft", "add rule inet psiphon_filter output accept"])
        wait_until(lambda: not machine.lease_remains(), "the lease to go")
        # Without a descriptor the daemon may answer nobody: each request then takes as long as the command waits.
        for _ in range(3):
            assert_honest(testbed)
        machine.signal_daemon(signal.SIGUSR2)
        machine.wait_state("OPEN", seconds=90)
        assert machine.lease_remains()
        assert machine.daemon_pid == pid, "another daemon"
        assert testbed.page() == plan.SERVER4
