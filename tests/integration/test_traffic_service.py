# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The filter at the cards' traffic control as the service keeps it: set, restored, reported, and never in the way."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest
from tests.integration.stage import Stage
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


def tc(stage: Stage, *words: str) -> str:
    return stage.world.client.run(["tc", *words]).stdout


def filters(stage: Stage, where: str = "egress", name: str = WIRE) -> str:
    if "clsact" not in tc(stage, "qdisc", "show", "dev", name):
        return ""
    return tc(stage, "filter", "show", "dev", name, where)


def has_filter(stage: Stage) -> bool:
    return "handle 0x5053" in filters(stage)


def layer(stage: Stage) -> dict[str, str]:
    status: dict[str, Any] = stage.machine.read_status() or {}
    found: dict[str, str] = status.get("layers", {}).get("traffic_control", {})
    return found


def wait_filter(stage: Stage) -> None:
    stage.machine.wait_for(lambda: has_filter(stage), "the filter", seconds=SECONDS)


def wait_layer(stage: Stage, state: str) -> dict[str, str]:
    stage.machine.wait_for(lambda: layer(stage).get("state") == state, state, seconds=SECONDS)
    return layer(stage)


def assert_open(stage: Stage) -> None:
    assert stage.machine.lease_remains()
    assert (stage.machine.read_status() or {})["state"] == "OPEN"
    assert stage.page() == plan.SERVER4


@pytest.fixture
def stage(reopened_stage: Stage) -> Stage:
    """The stage, open, with the filter on the wire."""
    wait_filter(reopened_stage)
    wait_layer(reopened_stage, "ok")
    return reopened_stage


@pytest.mark.requirement("R1", "B4")
def test_whoever_takes_the_filter_away_or_changes_it_has_it_put_back_and_nothing_closes(stage: Stage) -> None:
    for words in (
        ("qdisc", "del", "dev", WIRE, "clsact"),
        ("filter", "del", "dev", WIRE, "egress"),
        ("filter", "replace", "dev", WIRE, "egress", "protocol", "all", "pref", "1", "handle", "0x50530002", "bpf",
         "direct-action", "bytecode", "1,6 0 0 0"),
    ):  # fmt: skip
        before = len(filters(stage).splitlines())
        tc(stage, *words)
        wait_filter(stage)
        stage.machine.wait_for(lambda: layer(stage).get("state") == "ok", "the layer", seconds=SECONDS)
        assert len(filters(stage).splitlines()) == before
        assert_open(stage)
    log = stage.machine.read_log()
    assert "another program changed traffic control on a card; the filter was put back" in log


def test_a_flush_of_all_rules_leaves_the_filter_and_the_machine_opens_again(stage: Stage) -> None:
    stage.world.client.run(["nft", "flush", "ruleset"])
    stage.machine.wait_state("OPEN", seconds=SECONDS)
    stage.machine.wait_for(stage.machine.lease_remains, "the lease", seconds=SECONDS)
    assert has_filter(stage)
    assert stage.page() == plan.SERVER4


def test_filters_of_others_stay_and_one_that_comes_first_is_reported(stage: Stage) -> None:
    tc(stage, "filter", "add", "dev", WIRE, "ingress", "protocol", "all", "pref", "9", *PASS_ALL)
    tc(stage, "filter", "add", "dev", WIRE, "egress", "protocol", "all", "pref", "9", *PASS_ALL)
    assert_open(stage)
    assert layer(stage)["state"] == "ok"
    stage.machine.kill_daemon()
    tc(stage, "qdisc", "del", "dev", WIRE, "clsact")
    tc(stage, "qdisc", "add", "dev", WIRE, "clsact")
    tc(stage, "filter", "add", "dev", WIRE, "egress", "protocol", "ip", "pref", "1", *PASS_ALL)
    stage.machine.start_daemon()
    stage.machine.wait_state("OPEN", seconds=SECONDS)
    assert WIRE in wait_layer(stage, "incomplete")["detail"]
    assert "u32" in filters(stage)
    tc(stage, "qdisc", "del", "dev", WIRE, "clsact")
    wait_layer(stage, "ok")


def test_an_ingress_discipline_in_its_place_is_reported_and_costs_no_opening(stage: Stage) -> None:
    stage.machine.kill_daemon()
    tc(stage, "qdisc", "del", "dev", WIRE, "clsact")
    tc(stage, "qdisc", "add", "dev", WIRE, "ingress")
    stage.machine.start_daemon()
    stage.machine.wait_state("OPEN", seconds=SECONDS)
    assert "ingress" in wait_layer(stage, "incomplete")["detail"]
    assert_open(stage)
    tc(stage, "qdisc", "del", "dev", WIRE, "ingress")
    wait_layer(stage, "ok")


@pytest.mark.requirement("R2", "R3")
def test_with_the_daemon_dead_and_all_rules_flushed_it_is_named_and_a_start_gets_out_of_it(stage: Stage) -> None:
    stage.machine.kill_daemon()
    stage.world.client.run(["nft", "flush", "ruleset"])
    assert read_lock(stage.world.client).layers["traffic_control"]["state"] == "ok", "the frame guard marks"
    stage.machine.release_guard()
    reported = read_lock(stage.world.client).layers["traffic_control"]
    assert reported["state"] == "broken"
    assert WIRE in reported["detail"]
    stage.machine.start_daemon()
    stage.machine.wait_state("OPEN", seconds=SECONDS)
    assert_open(stage)
    assert read_lock(stage.world.client).layers["traffic_control"]["state"] == "ok"
    stage.machine.hold_guard()


@pytest.mark.requirement("R3")
def test_a_card_that_is_no_wire_any_more_loses_its_filter_before_its_guard(stage: Stage) -> None:
    """A bridge led out once, and the daemon that knew it is gone: the new one does not guard it."""
    client = stage.world.client
    client.run(["ip", "link", "add", "once0", "type", "bridge"])
    client.run(["ip", "link", "set", "once0", "up"])
    client.run(["ip", "route", "add", "default", "dev", "once0", "metric", "9999"])
    stage.machine.wait_for(lambda: "handle 0x5053" in filters(stage, name="once0"), "its filter", seconds=SECONDS)
    client.run(["ip", "route", "del", "default", "dev", "once0"])
    stage.machine.kill_daemon()
    stage.machine.start_daemon()
    stage.machine.wait_state("OPEN", seconds=SECONDS)
    stage.machine.wait_for(lambda: not filters(stage, name="once0"), "its end", seconds=SECONDS)
    assert has_filter(stage)
    client.run(["ip", "link", "del", "once0"])


@pytest.mark.requirement("R3")
def test_removal_of_the_tables_takes_the_filters_along(stage: Stage) -> None:
    stage.machine.kill_daemon()
    stage.machine.release_guard()
    stage.world.client.call(LinuxKernel().remove_routing)
    stage.world.client.call(LinuxKernel().remove_tables)
    assert "clsact" not in tc(stage, "qdisc")
    mark = stage.world.mark()
    sent = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'open again', ('%s', 7))"
    stage.world.client.run([sys.executable, "-c", sent % plan.INTERNET4])
    stage.machine.wait_for(
        lambda: any(b"open again" in frame.data for frame in stage.world.frames_since(mark)), "a frame", seconds=SECONDS
    )
    stage.machine.boot_lock()
    stage.machine.hold_guard()
    stage.machine.start_daemon()
    stage.machine.wait_state("OPEN", seconds=SECONDS)
