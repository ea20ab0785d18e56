# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What the real daemon's status says about the core's work."""

from __future__ import annotations

import os
from typing import Any

import pytest
from tests.integration.stage import Stage, open_stage

from psiphon_vpn.cli.main import run_cli

pytestmark = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="needs root and namespaces")]


def read(stage: Stage) -> dict[str, Any]:
    status = stage.machine.read_status()
    assert status is not None
    return status


def test_an_open_tunnel_is_reported_with_what_it_carries_and_its_end_ends_that() -> None:
    with open_stage() as stage:
        # The service's own questions through the tunnel are the traffic.
        stage.machine.wait_for(lambda: read(stage)["connection"]["received"] > 0, "a count of bytes")
        reported = read(stage)
        assert reported["connection"]["protocol"] == "OSSH"
        assert reported["connection"]["sent"] > 0
        assert reported["connection"]["limit_up"] is None
        assert reported["lasting"] is False
        stage.machine.command("stop")
        stage.machine.wait_state("LOCKED")
        reported = read(stage)
        assert reported["connection"] is None
        assert reported["lasting"] is True


def test_a_core_without_any_server_says_so_and_that_a_person_is_needed() -> None:
    with open_stage(start=False) as stage:
        stage.set_faults({"kind": "empty_list"})
        stage.machine.write_config(target=False)
        stage.machine.start_daemon()
        stage.machine.wait_for(lambda: read(stage)["reason_code"] == "no_list", "the reason")
        reported = read(stage)
        assert reported["servers"]["known"] == 0
        assert reported["lasting"] is True
        assert reported["locked"] is True


def test_waiting_for_the_tunnel_ends_with_it_with_a_lasting_reason_or_with_the_time(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with open_stage(start=False) as stage:
        wait = ["--runtime-dir", str(stage.machine.runtime_dir), "start", "--wait"]
        stage.set_faults({"kind": "disconnect"})
        stage.machine.start_daemon()
        assert run_cli([*wait, "--timeout", "1"]) == 75
        stage.set_faults()
        assert run_cli(wait) == 0
        assert "PROTECTED and connected" in capsys.readouterr().out
        stage.machine.write_config(target=False)
        stage.set_faults({"kind": "empty_list"})
        stage.machine.command("reload")
        assert run_cli(wait) == 1
        assert "no Psiphon server is known" in capsys.readouterr().out
