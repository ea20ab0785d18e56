# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What the real daemon's status says about the core's work."""

from __future__ import annotations

import os
from typing import Any

import pytest
from tests.integration.testbed import Testbed, open_testbed

from psiphon_vpn.cli.main import run_cli

pytestmark = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="needs root and namespaces")]


def read(testbed: Testbed) -> dict[str, Any]:
    status = testbed.machine.read_status()
    assert status is not None
    return status


def test_an_open_tunnel_is_reported_with_what_it_carries_and_its_end_ends_that() -> None:
    with open_testbed() as testbed:
        # The service's own questions through the tunnel are the traffic.
        testbed.machine.wait_for(lambda: read(testbed)["connection"]["received"] > 0, "a count of bytes")
        reported = read(testbed)
        assert reported["connection"]["protocol"] == "OSSH"
        assert reported["connection"]["sent"] > 0
        assert reported["connection"]["limit_up"] is None
        assert reported["lasting"] is False
        testbed.machine.command("stop")
        testbed.machine.wait_state("LOCKED")
        reported = read(testbed)
        assert reported["connection"] is None
        assert reported["lasting"] is True


def test_a_core_without_any_server_says_so_and_that_a_person_is_needed() -> None:
    with open_testbed(start=False) as testbed:
        testbed.set_faults({"kind": "empty_list"})
        testbed.machine.write_config(target=False)
        testbed.machine.start_daemon()
        testbed.machine.wait_for(lambda: read(testbed)["reason_code"] == "no_list", "the reason")
        reported = read(testbed)
        assert reported["servers"]["known"] == 0
        assert reported["lasting"] is True
        assert reported["locked"] is True


def test_waiting_for_the_tunnel_ends_with_it_with_a_lasting_reason_or_with_the_time(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with open_testbed(start=False) as testbed:
        wait = ["--runtime-dir", str(testbed.machine.runtime_dir), "start", "--wait"]
        testbed.set_faults({"kind": "disconnect"})
        testbed.machine.start_daemon()
        assert run_cli([*wait, "--timeout", "1"]) == 75
        testbed.set_faults()
        assert run_cli(wait) == 0
        assert "PROTECTED and connected" in capsys.readouterr().out
        testbed.machine.write_config(target=False)
        testbed.set_faults({"kind": "empty_list"})
        testbed.machine.command("reload")
        assert run_cli(wait) == 1
        assert "no Psiphon server is known" in capsys.readouterr().out
