# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The filter at the cards' traffic control as the service keeps it: set, restored, reported, and never in the way."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest
from tests.integration.testbed import Testbed
from tests.lock_reading import read_lock

from psiphon_lab import addresses as plan
from psiphon_lab.addresses import LAN_A
from psiphon_vpn.system.linux_platform import LinuxKernel

pytestmark = [
    pytest.mark.lab,
    pytest.mark.timeout(240),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root and namespaces"),
]

WIRE = LAN_A.interface
PASS_ALL = ("u32", "match", "u32", "0", "0")
SECONDS = 30.0


def tc(testbed: Testbed, *words: str) -> str:
    return testbed.world.client.run(["tc", *words]).stdout


def filters(testbed: Testbed, where: str = "egress", name: str = WIRE) -> str:
    if "clsact" not in tc(testbed, "qdisc", "show", "dev", name):
        return ""
    return tc(testbed, "filter", "show", "dev", name, where)


def has_filter(testbed: Testbed) -> bool:
    return "handle 0x5053" in filters(testbed)


def layer(testbed: Testbed) -> dict[str, str]:
    status: dict[str, Any] = testbed.machine.read_status() or {}
    found: dict[str, str] = status.get("layers", {}).get("traffic_control", {})
    return found


def wait_filter(testbed: Testbed) -> None:
    testbed.machine.wait_for(lambda: has_filter(testbed), "the filter", seconds=SECONDS)


def wait_layer(testbed: Testbed, state: str) -> dict[str, str]:
    testbed.machine.wait_for(lambda: layer(testbed).get("state") == state, state, seconds=SECONDS)
    return layer(testbed)


def assert_open(testbed: Testbed) -> None:
    assert testbed.machine.lease_remains()
    assert (testbed.machine.read_status() or {})["state"] == "OPEN"
    assert testbed.page() == plan.SERVER4


@pytest.fixture
def testbed(reopened_testbed: Testbed) -> Testbed:
    """The testbed, open, with the filter on the wire."""
    wait_filter(reopened_testbed)
    wait_layer(reopened_testbed, "ok")
    return reopened_testbed


@pytest.mark.requirement("R1", "B4")
def test_whoever_takes_the_filter_away_or_changes_it_has_it_put_back_and_nothing_closes(testbed: Testbed) -> None:
    for words in (
        ("qdisc", "del", "dev", WIRE, "clsact"),
        ("filter", "del", "dev", WIRE, "egress"),
        ("filter", "replace", "dev", WIRE, "egress", "protocol", "all", "pref", "1", "handle", "0x50530002", "bpf",
         "direct-action", "bytecode", "1,6 0 0 0"),
    ):  # fmt: skip
        before = len(filters(testbed).splitlines())
        tc(testbed, *words)
        wait_filter(testbed)
        testbed.machine.wait_for(lambda: layer(testbed).get("state") == "ok", "the layer", seconds=SECONDS)
        assert len(filters(testbed).splitlines()) == before
        assert_open(testbed)
    log = testbed.machine.read_log()
    assert "another program changed traffic control on a card; the filter was put back" in log


def test_a_flush_of_all_rules_leaves_the_filter_and_the_machine_opens_again(testbed: Testbed) -> None:
    testbed.world.client.run(["nft", "flush", "ruleset"])
    testbed.machine.wait_state("OPEN", seconds=SECONDS)
    testbed.machine.wait_for(testbed.machine.lease_remains, "the lease", seconds=SECONDS)
    assert has_filter(testbed)
    assert testbed.page() == plan.SERVER4


def test_filters_of_others_stay_and_one_that_comes_first_is_reported(testbed: Testbed) -> None:
    tc(testbed, "filter", "add", "dev", WIRE, "ingress", "protocol", "all", "pref", "9", *PASS_ALL)
    tc(testbed, "filter", "add", "dev", WIRE, "egress", "protocol", "all", "pref", "9", *PASS_ALL)
    assert_open(testbed)
    assert layer(testbed)["state"] == "ok"
    testbed.machine.kill_daemon()
    tc(testbed, "qdisc", "del", "dev", WIRE, "clsact")
    tc(testbed, "qdisc", "add", "dev", WIRE, "clsact")
    tc(testbed, "filter", "add", "dev", WIRE, "egress", "protocol", "ip", "pref", "1", *PASS_ALL)
    testbed.machine.start_daemon()
    testbed.machine.wait_state("OPEN", seconds=SECONDS)
    assert WIRE in wait_layer(testbed, "incomplete")["detail"]
    assert "u32" in filters(testbed)
    tc(testbed, "qdisc", "del", "dev", WIRE, "clsact")
    wait_layer(testbed, "ok")


def test_an_ingress_discipline_in_its_place_is_reported_and_costs_no_opening(testbed: Testbed) -> None:
    testbed.machine.kill_daemon()
    tc(testbed, "qdisc", "del", "dev", WIRE, "clsact")
    tc(testbed, "qdisc", "add", "dev", WIRE, "ingress")
    testbed.machine.start_daemon()
    testbed.machine.wait_state("OPEN", seconds=SECONDS)
    assert "ingress" in wait_layer(testbed, "incomplete")["detail"]
    assert_open(testbed)
    tc(testbed, "qdisc", "del", "dev", WIRE, "ingress")
    wait_layer(testbed, "ok")


@pytest.mark.requirement("R2", "R3")
def test_with_the_daemon_dead_and_all_rules_flushed_it_is_named_and_a_start_gets_out_of_it(testbed: Testbed) -> None:
    testbed.machine.kill_daemon()
    testbed.world.client.run(["nft", "flush", "ruleset"])
    assert read_lock(testbed.world.client).layers["traffic_control"]["state"] == "ok", "the frame guard marks"
    testbed.machine.release_guard()
    reported = read_lock(testbed.world.client).layers["traffic_control"]
    assert reported["state"] == "broken"
    assert WIRE in reported["detail"]
    testbed.machine.start_daemon()
    testbed.machine.wait_state("OPEN", seconds=SECONDS)
    assert_open(testbed)
    assert read_lock(testbed.world.client).layers["traffic_control"]["state"] == "ok"
    testbed.machine.hold_guard()


@pytest.mark.requirement("R3")
def test_a_card_that_is_no_wire_any_more_loses_its_filter_before_its_guard(testbed: Testbed) -> None:
    """A bridge led out once, and the daemon that knew it is gone: the new one does not guard it."""
    client = testbed.world.client
    client.run(["ip", "link", "add", "once0", "type", "bridge"])
    client.run(["ip", "link", "set", "once0", "up"])
    client.run(["ip", "route", "add", "default", "dev", "once0", "metric", "9999"])
    testbed.machine.wait_for(lambda: "handle 0x5053" in filters(testbed, name="once0"), "its filter", seconds=SECONDS)
    client.run(["ip", "route", "del", "default", "dev", "once0"])
    testbed.machine.kill_daemon()
    testbed.machine.start_daemon()
    testbed.machine.wait_state("OPEN", seconds=SECONDS)
    testbed.machine.wait_for(lambda: not filters(testbed, name="once0"), "its end", seconds=SECONDS)
    assert has_filter(testbed)
    client.run(["ip", "link", "del", "once0"])


@pytest.mark.requirement("R3")
def test_removal_of_the_tables_takes_the_filters_along(testbed: Testbed) -> None:
    testbed.machine.kill_daemon()
    testbed.machine.release_guard()
    testbed.world.client.call(LinuxKernel().remove_routing)
    testbed.world.client.call(LinuxKernel().remove_tables)
    assert "clsact" not in tc(testbed, "qdisc")
    mark = testbed.world.mark()
    sent = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'open again', ('%s', 7))"
    testbed.world.client.run([sys.executable, "-c", sent % plan.INTERNET4])
    testbed.machine.wait_for(
        lambda: any(b"open again" in frame.data for frame in testbed.world.frames_since(mark)),
        "a frame",
        seconds=SECONDS,
    )
    testbed.machine.boot_lock()
    testbed.machine.hold_guard()
    testbed.machine.start_daemon()
    testbed.machine.wait_state("OPEN", seconds=SECONDS)
