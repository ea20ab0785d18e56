# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Traffic control that others put before the TUN: the tunnel is tested at once, and what blocks is removed."""

from __future__ import annotations

import os
from typing import Any

import pytest
from tests.integration.testbed import Testbed

from psiphon_lab import addresses as plan
from psiphon_vpn.policy import names

pytestmark = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="needs root and namespaces")]

TUN = names.TUN_NAME
ASKED = f"changed traffic control at {TUN}"
TAKEN = "held back the tunnel's packets"


def tc(testbed: Testbed, *words: str) -> str:
    return testbed.world.client.run(["tc", *words]).stdout


def status(testbed: Testbed) -> dict[str, Any]:
    return testbed.machine.read_status() or {}


@pytest.mark.parametrize(
    "commands",
    [
        [("qdisc", "replace", "dev", TUN, "root", "pfifo", "limit", "0")],
        [("qdisc", "replace", "dev", TUN, "root", "tbf", "rate", "8bit", "burst", "1", "limit", "1")],
        [
            ("qdisc", "add", "dev", TUN, "clsact"),
            ("filter", "add", "dev", TUN, "egress", "protocol", "all", "pref", "1", "bpf", "direct-action",
             "bytecode", "1,6 0 0 2"),
        ],
    ],
    ids=["a queue of no length", "a rate of nothing", "a filter"],
)  # fmt: skip
def test_what_keeps_the_tunnels_packets_back_is_taken_away_and_the_core_stays(
    reopened_testbed: Testbed, commands: list[tuple[str, ...]]
) -> None:
    testbed = reopened_testbed
    before, lines = status(testbed), len(testbed.machine.read_log())
    for words in commands:
        tc(testbed, *words)
    testbed.machine.wait_for(lambda: TAKEN in testbed.machine.read_log()[lines:], "its word")
    testbed.machine.wait_state("OPEN")
    testbed.machine.wait_for(lambda: testbed.page() == plan.SERVER4, "a page")
    assert status(testbed)["core_pid"] == before["core_pid"], "nothing was wrong with the core"
    said = testbed.machine.read_log()[lines:]
    assert ASKED in said
    assert "OPEN -> VERIFYING: rules_changed" in said
    shown = tc(testbed, "qdisc", "show", "dev", TUN)
    assert "clsact" not in shown
    assert " 0: root" in shown, "the kernel's own"


def test_what_lets_packets_through_stays_and_closes_nothing(reopened_testbed: Testbed) -> None:
    """An administrator may shape what programs send."""
    testbed = reopened_testbed
    since, lines = status(testbed)["since"], len(testbed.machine.read_log())
    tc(testbed, "qdisc", "replace", "dev", TUN, "root", "pfifo", "limit", "1000")
    testbed.machine.wait_for(lambda: ASKED in testbed.machine.read_log()[lines:], "its word")
    assert testbed.page() == plan.SERVER4
    # The service's own reading of the queue, at each renewal, is no change.
    asked = testbed.machine.read_log().count(ASKED)
    tc(testbed, "qdisc", "change", "dev", TUN, "root", "pfifo", "limit", "900")
    testbed.machine.wait_for(lambda: testbed.machine.read_log().count(ASKED) > asked, "its word again")
    assert testbed.machine.read_log().count(ASKED) == asked + 1
    assert status(testbed)["since"] == since
    assert "limit 900" in tc(testbed, "qdisc", "show", "dev", TUN)
    tc(testbed, "qdisc", "del", "dev", TUN, "root")
