# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What the leak test takes for a change of a machine without a daemon, and what not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from psiphon_lab.leaktest.states import DaemonStopped
from psiphon_lab.leaktest.testbed import open_testbed
from psiphon_lab.service_adapter import names
from psiphon_lab.waiting import wait_until

pytestmark = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="needs root and namespaces")]


def test_a_carrier_that_is_lost_later_is_no_change_and_a_route_that_goes_is_one(tmp_path: Path) -> None:
    """The kernel ends the core with its daemon, and reports the TUN's lost carrier up to a second later."""
    with open_testbed(tmp_path) as testbed:
        held, client = DaemonStopped(testbed), testbed.world.client
        listing = ["ip", "route", "show", "table", str(names.ROUTE_TABLE)]
        held.enter()
        assert "linkdown" not in client.run(listing).stdout
        testbed.machine.kill_daemon()
        wait_until(lambda: "linkdown" in client.run(listing).stdout, "the lost carrier")
        assert held.explain_loss() == ""
        client.run(["ip", "route", "flush", "table", str(names.ROUTE_TABLE)])
        assert held.explain_loss() != ""
        held.leave()
