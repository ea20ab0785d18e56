# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Every kind of network and every kind of change, on real links: what is a transition, and what is not."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.integration.mobile import CLIENT, NAME, open_mobile_link
from tests.integration.stage import Stage, open_stage

from psiphon_lab import addresses as plan
from psiphon_lab.addresses import LAN_A, LAN_B
from psiphon_lab.judge import judge_frames, world_evidence
from psiphon_lab.probe import LIMIT
from psiphon_lab.tun_device import attach_tun

pytestmark = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="needs root and namespaces")]

HASTY = Path(__file__).with_name("hasty_daemon.py")


@pytest.fixture(scope="module")
def _stage() -> Iterator[Stage]:
    with open_stage(start=False) as made:
        made.machine.program = [str(HASTY), "SLOW_SECONDS=0.5"]
        made.machine.start_daemon()
        made.machine.wait_state("OPEN")
        yield made


@pytest.fixture
def stage(_stage: Stage) -> Stage:
    """Open over provider A."""
    _stage.machine.command("restart")
    _stage.machine.wait_state("OPEN")
    _stage.machine.wait_for(_stage.machine.lease_remains, "the lease")
    return _stage


def ip(stage: Stage, *words: str) -> None:
    stage.world.client.run(["ip", *words])


def read_protocols(descriptor: int) -> set[int]:
    """The protocols of the IPv4 packets that wait at the far end of a link."""
    found = set()
    with contextlib.suppress(BlockingIOError):
        while packet := os.read(descriptor, 65536):
            if packet[0] >> 4 == 4:
                found.add(packet[9])
    return found


def wait_uplink(stage: Stage, name: str) -> dict[str, Any]:
    stage.machine.wait_for(
        lambda: (now := stage.read_status())["state"] == "OPEN" and now["uplink"]["interface"] == name,
        f"open over {name}",
    )
    return stage.read_status()


@pytest.mark.requirement("R6", "R7")
def test_two_networks_at_once_the_better_one_is_taken_and_the_other_when_it_goes(stage: Stage) -> None:
    mark = stage.world.mark()
    first = stage.read_status()
    stage.world.plug_b()
    second = wait_uplink(stage, LAN_B.interface)
    assert second["core_pid"] != first["core_pid"], "a running core cannot be given another interface"
    assert stage.page() == plan.SERVER4
    stage.world.unplug_b()
    wait_uplink(stage, LAN_A.interface)
    assert stage.page() == plan.SERVER4
    stage.assert_no_leak(mark)


@pytest.mark.requirement("R6", "R7", "B4")
def test_from_wifi_to_ethernet_to_a_mobile_link_without_neighbours_it_opens_on_each_and_nothing_else_leaves(
    stage: Stage,
) -> None:
    """With the network managers' metrics: Ethernet 100, Wi-Fi 600, mobile 700."""
    mark, world = stage.world.mark(), stage.world

    def set_metric(old: int, new: int) -> None:
        for family, router in (("-4", LAN_A.router4), ("-6", LAN_A.router6)):
            ip(stage, family, "route", "add", "default", "via", router, "dev", "eth0", "metric", str(new))
            ip(stage, family, "route", "del", "default", "dev", "eth0", "metric", str(old))

    set_metric(100, 600)
    wifi = wait_uplink(stage, LAN_A.interface)
    with open_mobile_link(world, metric=700) as sent:
        stage.let_it_renew()
        still = stage.machine.wait_state("OPEN")
        assert (still["uplink"]["interface"], still["core_pid"]) == (LAN_A.interface, wifi["core_pid"])
        world.connect_uplink(LAN_B, metric=100)
        wait_uplink(stage, LAN_B.interface)
        assert stage.page() == plan.SERVER4
        world.disconnect_uplink(LAN_A)
        world.disconnect_uplink(LAN_B)
        wait_uplink(stage, NAME)
        assert stage.page() == plan.SERVER4
        stage.probe(replace(LAN_A, interface=NAME))
        guard = world.client.run(["nft", "list", "table", "netdev", "psiphon_egress"]).stdout
        assert NAME in guard
        world.connect_uplink(LAN_A)
        wait_uplink(stage, LAN_A.interface)
        flows = stage.server.read_flows()
        verdicts = judge_frames(sent, world_evidence(flows))
        assert {flow.client for flow in flows} >= {LAN_A.client4, LAN_B.client4, CLIENT}
    assert {verdict.innocent for verdict in verdicts} >= {"tunnel flow"}
    assert [verdict.text for verdict in verdicts if verdict.is_leak] == []
    stage.assert_no_leak(mark)


@pytest.mark.requirement("R6")
def test_a_second_network_that_is_no_better_is_no_transition(stage: Stage) -> None:
    before = stage.read_status()
    stage.world.connect_uplink(LAN_B, metric=900)
    stage.let_it_renew()
    stage.world.disconnect_uplink(LAN_B)
    stage.world.uplink = LAN_A
    stage.let_it_renew()
    # A new wire is guarded and everything is verified again, but the core continues.
    assert stage.machine.wait_state("OPEN")["core_pid"] == before["core_pid"]


@pytest.mark.requirement("R7")
def test_a_network_with_ipv4_alone_is_enough(stage: Stage) -> None:
    mark = stage.world.mark()
    ip(stage, "-6", "route", "del", "default", "dev", "eth0")
    wanted = IPV6_ALONE | {"ipv4": True, "ipv6": False}
    stage.machine.wait_for(lambda: stage.read_status()["uplink"] == wanted, "an uplink of IPv4 alone")
    stage.machine.wait_state("OPEN")
    assert stage.page() == plan.SERVER4
    ip(stage, "-6", "route", "add", "default", "via", LAN_A.router6, "dev", "eth0", "metric", "100", "proto", "ra")
    stage.machine.wait_for(lambda: bool((stage.read_status()["uplink"] or {}).get("ipv6")), "IPv6 again")
    stage.machine.wait_state("OPEN")
    stage.assert_no_leak(mark)


@contextlib.contextmanager
def ipv6_alone(stage: Stage, *, address: bool = False) -> Iterator[None]:
    """The network gives IPv6 only: no IPv4 route and, except for `address`, no IPv4 address."""
    ip(stage, "-4", *("route del default dev eth0" if address else "addr flush dev eth0").split())
    try:
        yield
    finally:
        route = f"default via {LAN_A.router4} dev eth0 metric 100 proto dhcp"
        ip(stage, "addr", "replace", f"{LAN_A.client4}/{LAN_A.prefix4}", "dev", "eth0")
        ip(stage, "-4", "route", "replace", *route.split())


IPV6_ALONE = {"interface": "eth0", "ipv4": False, "ipv6": True, "chosen": "only", "others": []}


@pytest.mark.requirement("R6", "R7")
def test_a_network_with_ipv6_alone_opens_when_a_server_is_known_by_ipv6(stage: Stage) -> None:
    mark = stage.world.mark()
    machine, before = stage.machine, len(stage.server.list_flows())
    try:
        with ipv6_alone(stage):
            machine.write_config(entry=stage.server.entry6)
            machine.command("reload")
            machine.wait_for(lambda: stage.read_status()["uplink"] == IPV6_ALONE, "an uplink of IPv6 alone")
            machine.wait_state("OPEN")
            machine.wait_for(lambda: stage.page(6) == plan.SERVER6, "IPv6 through the tunnel")
            assert stage.page(4) == plan.SERVER4, "the tunnel carries IPv4 where the network has none"
            assert {flow.server for flow in stage.server.list_flows()[before:]} == {plan.SERVER6}
            rules = stage.world.client.run(["nft", "list", "chain", "inet", "psiphon_filter", "to_wire"]).stdout
            assert "the uplink has no IPv4 route" in rules
            stage.probe()
    finally:
        machine.write_config()
        machine.command("reload")
    machine.wait_for(lambda: bool((stage.read_status()["uplink"] or {}).get("ipv4")), "IPv4 again")
    machine.wait_state("OPEN")
    stage.assert_no_leak(mark)


@pytest.mark.requirement("R1", "R7")
def test_a_network_with_ipv6_alone_and_no_server_known_by_ipv6_stays_locked_and_says_why(stage: Stage) -> None:
    mark = stage.world.mark()
    # With an address but no route, a socket bound to the link would look for its server there.
    with ipv6_alone(stage, address=True):
        stage.machine.wait_for(lambda: stage.read_status()["uplink"] == IPV6_ALONE, "an uplink of IPv6 alone")
        stage.machine.wait_for(lambda: stage.read_status()["reason_code"] == "no_ipv4", "the reason")
        status = stage.read_status()
        assert (status["state"], status["locked"]) == ("CONNECTING", True)
        assert "only IPv6" in status["reason"]
        assert "IPv4" in status["next_step"]
        assert {stage.page(4, limit=LIMIT), stage.page(6, limit=LIMIT)} <= {
            "unreachable",
            "refused",
            "denied",
            "timeout",
        }
        stage.probe()
    stage.machine.wait_state("OPEN")
    # There is not even ARP for the server.
    stage.assert_no_leak(mark)


@pytest.mark.requirement("R6")
def test_a_dhcp_renewal_and_new_temporary_ipv6_addresses_are_no_transition(stage: Stage) -> None:
    before, ends = stage.read_status(), stage.watch_ends()
    prefix = LAN_A.client6.rsplit("::", 1)[0]
    for number in range(1, 4):
        ip(stage, "addr", "change", f"{LAN_A.client4}/{LAN_A.prefix4}", "dev", "eth0", "valid_lft", "600",
           "preferred_lft", "600")  # fmt: skip
        ip(stage, "route", "replace", "default", "via", LAN_A.router4, "dev", "eth0", "metric", "100", "proto", "dhcp")
        ip(stage, "addr", "add", f"{prefix}::{number:x}:abcd/64", "dev", "eth0", "valid_lft", "600",
           "preferred_lft", "300", "nodad")  # fmt: skip
        stage.read_status()
    ip(stage, "addr", "del", f"{prefix}::1:abcd/64", "dev", "eth0")
    stage.let_it_renew()
    assert (ends(), stage.read_status()["core_pid"]) == ([], before["core_pid"])
    stage.machine.wait_for(stage.machine.lease_remains, "the lease")
    for number in (2, 3):
        ip(stage, "addr", "del", f"{prefix}::{number:x}:abcd/64", "dev", "eth0")


@pytest.mark.requirement("R6", "B4")
def test_interfaces_of_containers_bridges_and_other_vpns_come_and_go_without_a_transition(stage: Stage) -> None:
    before, ends = stage.read_status(), stage.watch_ends()
    for name, command in (
        ("veth0", "link add veth0 type veth peer name veth1"),
        ("br0", "link add br0 type bridge"),
        ("ifb7", "link add ifb7 type ifb"),
        # Such as OpenVPN, or WireGuard without kernel support.
        ("tun7", "tuntap add dev tun7 mode tun"),
    ):
        ip(stage, *command.split())
        ip(stage, "link", "set", name, "up")
        ip(stage, "addr", "add", "10.77.0.1/24", "dev", name)
        ip(stage, "addr", "add", "fd77::1/64", "dev", name, "nodad")
        stage.read_status()
        ip(stage, "link", "del", name)
    stage.let_it_renew()
    assert (ends(), stage.read_status()["core_pid"]) == ([], before["core_pid"])
    # An interface that may lead out gets its egress guard first, but the core continues.
    ip(stage, "link", "add", "vxlan7", "type", "vxlan", "id", "7", "dev", "eth0", "dstport", "4789")
    stage.machine.wait_for(
        lambda: "vxlan7" in stage.world.client.run(["nft", "list", "table", "netdev", "psiphon_egress"]).stdout,
        "its egress guard",
    )
    ip(stage, "link", "del", "vxlan7")
    stage.let_it_renew()
    assert stage.machine.wait_state("OPEN")["core_pid"] == before["core_pid"]


@pytest.mark.requirement("R6")
def test_a_renamed_interface_is_followed_by_its_new_name(stage: Stage) -> None:
    mark = stage.world.mark()
    client = stage.world.client
    script = (
        f"link set eth0 down\nlink set eth0 name lan0\nlink set lan0 up\n"
        f"addr replace {LAN_A.client4}/{LAN_A.prefix4} dev lan0\n"
        f"route replace default via {LAN_A.router4} dev lan0 metric 100 proto dhcp\n"
    )
    client.run(["ip", "-batch", "-"], input=script)
    wait_uplink(stage, "lan0")
    assert stage.page() == plan.SERVER4
    client.run(["ip", "-batch", "-"], input=script.replace("lan0", "X").replace("eth0", "lan0").replace("X", "eth0"))
    ip(stage, "addr", "add", f"{LAN_A.client6}/{LAN_A.prefix6}", "dev", "eth0", "nodad")
    ip(stage, "-6", "route", "add", "default", "via", LAN_A.router6, "dev", "eth0", "metric", "100", "proto", "ra")
    wait_uplink(stage, "eth0")
    stage.assert_no_leak(mark)


@pytest.mark.requirement("R6", "B4")
def test_a_point_to_point_link_without_an_address_of_its_own_is_an_uplink_with_a_guard_of_its_own(stage: Stage) -> None:
    mark = stage.world.mark()
    # Like pppd's: packets without a link-layer header, for a program that carries them to the other end.
    other_end = stage.world.client.call(lambda: attach_tun("p2p0"))
    try:
        ip(stage, "link", "set", "p2p0", "up")
        ip(stage, "route", "add", "default", "dev", "p2p0", "metric", "5")
        stage.machine.write_config('uplink = "p2p0"\n' + stage.machine.config_path.read_text())
        stage.machine.command("reload")
        stage.machine.wait_for(
            lambda: (stage.read_status()["uplink"] or {}).get("interface") == "p2p0", "the new uplink"
        )
        stage.machine.wait_for(lambda: 6 in read_protocols(other_end), "the core's attempt to connect over it")
        assert stage.read_status()["locked"] is True
        guard = stage.world.client.run(["nft", "list", "table", "netdev", "psiphon_egress"]).stdout
        assert "p2p0" in guard
        stage.probe()
        assert read_protocols(other_end) <= {6}, "only the core's TCP"
        shown = stage.read_status()["uplink"]
        assert (shown["chosen"], shown["others"]) == ("named", ["eth0"])
    finally:
        os.close(other_end)
    # The named interface is gone: no other is taken.
    stage.machine.wait_for(
        lambda: stage.read_status()["reason_code"] == "uplink_absent", "locked without the named one"
    )
    stage.machine.write_config()
    stage.machine.command("reload")
    wait_uplink(stage, "eth0")
    stage.assert_no_leak(mark)


@pytest.mark.requirement("R6")
def test_a_network_that_comes_late_is_waited_for_without_work_and_taken_when_it_comes() -> None:
    with open_stage(start=False) as stage:
        stage.world.disconnect_uplink(LAN_A)
        stage.machine.start_daemon()
        status = stage.machine.wait_state("LOCKED")
        assert (status["reason_code"], status["core_pid"], status["next_try"]) == ("no_uplink", None, None)
        log = stage.machine.read_log()
        for _ in range(20):
            assert stage.read_status()["next_try"] is None
        assert stage.machine.read_log() == log, "nothing is tried, and nothing logged"
        stage.world.connect_uplink(LAN_A)
        stage.machine.wait_state("OPEN")


@pytest.mark.requirement("R6")
def test_addresses_that_come_one_after_the_other_end_in_an_open_tunnel_and_no_leak(stage: Stage) -> None:
    """As with a slow DHCP server, and router advertisements that come later."""
    mark = stage.world.mark()
    stage.world.disconnect_uplink(LAN_A)
    stage.machine.wait_state("LOCKED")
    stage.world.set_carrier(LAN_A, up=True)
    ip(stage, "link", "set", "eth0", "up")
    stage.read_status()  # the daemon gets its turn between these steps
    ip(stage, "addr", "add", f"{LAN_A.client6}/{LAN_A.prefix6}", "dev", "eth0", "nodad")
    stage.read_status()  # the daemon gets its turn between these steps
    ip(stage, "addr", "add", f"{LAN_A.client4}/{LAN_A.prefix4}", "dev", "eth0")
    stage.read_status()  # the daemon gets its turn between these steps
    ip(stage, "route", "add", "default", "via", LAN_A.router4, "dev", "eth0", "metric", "100", "proto", "dhcp")
    stage.read_status()  # the daemon gets its turn between these steps
    ip(stage, "-6", "route", "add", "default", "via", LAN_A.router6, "dev", "eth0", "metric", "100", "proto", "ra")
    wait_uplink(stage, "eth0")
    stage.assert_no_leak(mark)
