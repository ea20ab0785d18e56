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
from tests.integration.testbed import Testbed, open_testbed
from tests.integration.troubles import wait_reason

from psiphon_lab import addresses as plan
from psiphon_lab.addresses import LAN_A, LAN_B
from psiphon_lab.judge import judge_frames, world_evidence
from psiphon_lab.probe import LIMIT
from psiphon_lab.tun_device import attach_tun

pytestmark = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="needs root and namespaces")]

HASTY = Path(__file__).with_name("hasty_daemon.py")


@pytest.fixture(scope="module")
def _testbed() -> Iterator[Testbed]:
    with open_testbed(start=False) as made:
        made.machine.program = [str(HASTY), "SLOW_SECONDS=0.5"]
        made.machine.start_daemon()
        made.machine.wait_state("OPEN")
        yield made


@pytest.fixture
def testbed(_testbed: Testbed) -> Testbed:
    """Open over provider A."""
    _testbed.machine.command("restart")
    _testbed.machine.wait_state("OPEN")
    _testbed.machine.wait_for(_testbed.machine.lease_remains, "the lease")
    return _testbed


def ip(testbed: Testbed, *words: str) -> None:
    testbed.world.client.run(["ip", *words])


def read_protocols(descriptor: int) -> set[int]:
    """The protocols of the IPv4 packets that wait at the far end of a link."""
    found = set()
    with contextlib.suppress(BlockingIOError):
        while packet := os.read(descriptor, 65536):
            if packet[0] >> 4 == 4:
                found.add(packet[9])
    return found


def wait_uplink(testbed: Testbed, name: str) -> dict[str, Any]:
    testbed.machine.wait_for(
        lambda: (now := testbed.read_status())["state"] == "OPEN" and now["uplink"]["interface"] == name,
        f"open over {name}",
    )
    return testbed.read_status()


@pytest.mark.requirement("R6", "R7")
def test_two_networks_at_once_the_better_one_is_taken_and_the_other_when_it_goes(testbed: Testbed) -> None:
    mark = testbed.world.mark()
    first = testbed.read_status()
    testbed.world.plug_b()
    second = wait_uplink(testbed, LAN_B.interface)
    assert second["core_pid"] != first["core_pid"], "a running core cannot be given another interface"
    assert testbed.page() == plan.SERVER4
    testbed.world.unplug_b()
    wait_uplink(testbed, LAN_A.interface)
    assert testbed.page() == plan.SERVER4
    testbed.assert_no_leak(mark)


@pytest.mark.requirement("R6", "R7", "B4")
def test_from_wifi_to_ethernet_to_a_mobile_link_without_neighbours_it_opens_on_each_and_nothing_else_leaves(
    testbed: Testbed,
) -> None:
    """With the network managers' metrics: Ethernet 100, Wi-Fi 600, mobile 700."""
    mark, world = testbed.world.mark(), testbed.world

    def set_metric(old: int, new: int) -> None:
        for family, router in (("-4", LAN_A.router4), ("-6", LAN_A.router6)):
            ip(testbed, family, "route", "add", "default", "via", router, "dev", "eth0", "metric", str(new))
            ip(testbed, family, "route", "del", "default", "dev", "eth0", "metric", str(old))

    set_metric(100, 600)
    wifi = wait_uplink(testbed, LAN_A.interface)
    with open_mobile_link(world, metric=700) as sent:
        testbed.let_it_renew()
        still = testbed.machine.wait_state("OPEN")
        assert (still["uplink"]["interface"], still["core_pid"]) == (LAN_A.interface, wifi["core_pid"])
        world.connect_uplink(LAN_B, metric=100)
        wait_uplink(testbed, LAN_B.interface)
        assert testbed.page() == plan.SERVER4
        world.disconnect_uplink(LAN_A)
        world.disconnect_uplink(LAN_B)
        wait_uplink(testbed, NAME)
        assert testbed.page() == plan.SERVER4
        testbed.probe(replace(LAN_A, interface=NAME))
        guard = world.client.run(["nft", "list", "table", "netdev", "psiphon_egress"]).stdout
        assert NAME in guard
        world.connect_uplink(LAN_A)
        wait_uplink(testbed, LAN_A.interface)
        flows = testbed.server.read_flows()
        verdicts = judge_frames(sent, world_evidence(flows))
        assert {flow.client for flow in flows} >= {LAN_A.client4, LAN_B.client4, CLIENT}
    assert {verdict.innocent for verdict in verdicts} >= {"tunnel flow"}
    assert [verdict.text for verdict in verdicts if verdict.is_leak] == []
    testbed.assert_no_leak(mark)


@pytest.mark.requirement("R6")
def test_a_second_network_that_is_no_better_is_no_transition(testbed: Testbed) -> None:
    before = testbed.read_status()
    testbed.world.connect_uplink(LAN_B, metric=900)
    testbed.let_it_renew()
    testbed.world.disconnect_uplink(LAN_B)
    testbed.world.uplink = LAN_A
    testbed.let_it_renew()
    # A new wire is guarded and everything is verified again, but the core continues.
    assert testbed.machine.wait_state("OPEN")["core_pid"] == before["core_pid"]


@pytest.mark.requirement("R7")
def test_a_network_with_ipv4_alone_is_enough(testbed: Testbed) -> None:
    mark = testbed.world.mark()
    ip(testbed, "-6", "route", "del", "default", "dev", "eth0")
    wanted = IPV6_ALONE | {"ipv4": True, "ipv6": False}
    testbed.machine.wait_for(lambda: testbed.read_status()["uplink"] == wanted, "an uplink of IPv4 alone")
    testbed.machine.wait_state("OPEN")
    assert testbed.page() == plan.SERVER4
    ip(testbed, "-6", "route", "add", "default", "via", LAN_A.router6, "dev", "eth0", "metric", "100", "proto", "ra")
    testbed.machine.wait_for(lambda: bool((testbed.read_status()["uplink"] or {}).get("ipv6")), "IPv6 again")
    testbed.machine.wait_state("OPEN")
    testbed.assert_no_leak(mark)


@contextlib.contextmanager
def ipv6_alone(testbed: Testbed, *, address: bool = False) -> Iterator[None]:
    """The network gives IPv6 only: no IPv4 route and, except for `address`, no IPv4 address."""
    ip(testbed, "-4", *("route del default dev eth0" if address else "addr flush dev eth0").split())
    try:
        yield
    finally:
        route = f"default via {LAN_A.router4} dev eth0 metric 100 proto dhcp"
        ip(testbed, "addr", "replace", f"{LAN_A.client4}/{LAN_A.prefix4}", "dev", "eth0")
        ip(testbed, "-4", "route", "replace", *route.split())


IPV6_ALONE = {"interface": "eth0", "ipv4": False, "ipv6": True, "chosen": "only", "others": []}


@pytest.mark.requirement("R6", "R7")
def test_a_network_with_ipv6_alone_opens_when_a_server_is_known_by_ipv6(testbed: Testbed) -> None:
    mark = testbed.world.mark()
    machine, before = testbed.machine, len(testbed.server.list_flows())
    try:
        with ipv6_alone(testbed):
            machine.write_config(entry=testbed.server.entry6)
            machine.command("reload")
            machine.wait_for(lambda: testbed.read_status()["uplink"] == IPV6_ALONE, "an uplink of IPv6 alone")
            machine.wait_state("OPEN")
            machine.wait_for(lambda: testbed.page(6) == plan.SERVER6, "IPv6 through the tunnel")
            assert testbed.page(4) == plan.SERVER4, "the tunnel carries IPv4 where the network has none"
            assert {flow.server for flow in testbed.server.list_flows()[before:]} == {plan.SERVER6}
            rules = testbed.world.client.run(["nft", "list", "chain", "inet", "psiphon_filter", "to_wire"]).stdout
            assert "the uplink has no IPv4 route" in rules
            testbed.probe()
    finally:
        machine.write_config()
        machine.command("reload")
    machine.wait_for(lambda: bool((testbed.read_status()["uplink"] or {}).get("ipv4")), "IPv4 again")
    machine.wait_state("OPEN")
    testbed.assert_no_leak(mark)


@pytest.mark.requirement("R1", "R7")
def test_a_network_with_ipv6_alone_and_no_server_known_by_ipv6_stays_locked_and_says_why(testbed: Testbed) -> None:
    mark = testbed.world.mark()
    # With an address but no route, a socket bound to the link would look for its server there.
    with ipv6_alone(testbed, address=True):
        testbed.machine.wait_for(lambda: testbed.read_status()["uplink"] == IPV6_ALONE, "an uplink of IPv6 alone")
        testbed.machine.wait_for(lambda: testbed.read_status()["reason_code"] == "no_ipv4", "the reason")
        status = testbed.read_status()
        assert (status["state"], status["locked"]) == ("CONNECTING", True)
        assert "only IPv6" in status["reason"]
        assert "IPv4" in status["next_step"]
        assert {testbed.page(4, limit=LIMIT), testbed.page(6, limit=LIMIT)} <= {
            "unreachable",
            "refused",
            "denied",
            "timeout",
        }
        testbed.probe()
    testbed.machine.wait_state("OPEN")
    # There is not even ARP for the server.
    testbed.assert_no_leak(mark)


@pytest.mark.requirement("R6")
def test_a_dhcp_renewal_and_new_temporary_ipv6_addresses_are_no_transition(testbed: Testbed) -> None:
    before, ends = testbed.read_status(), testbed.watch_ends()
    prefix = LAN_A.client6.rsplit("::", 1)[0]
    for number in range(1, 4):
        ip(testbed, "addr", "change", f"{LAN_A.client4}/{LAN_A.prefix4}", "dev", "eth0", "valid_lft", "600",
           "preferred_lft", "600")  # fmt: skip
        ip(
            testbed,
            "route",
            "replace",
            "default",
            "via",
            LAN_A.router4,
            "dev",
            "eth0",
            "metric",
            "100",
            "proto",
            "dhcp",
        )
        ip(testbed, "addr", "add", f"{prefix}::{number:x}:abcd/64", "dev", "eth0", "valid_lft", "600",
           "preferred_lft", "300", "nodad")  # fmt: skip
        testbed.read_status()
    ip(testbed, "addr", "del", f"{prefix}::1:abcd/64", "dev", "eth0")
    testbed.let_it_renew()
    assert (ends(), testbed.read_status()["core_pid"]) == ([], before["core_pid"])
    testbed.machine.wait_for(testbed.machine.lease_remains, "the lease")
    for number in (2, 3):
        ip(testbed, "addr", "del", f"{prefix}::{number:x}:abcd/64", "dev", "eth0")


@pytest.mark.requirement("R6", "B4")
def test_interfaces_of_containers_bridges_and_other_vpns_come_and_go_without_a_transition(testbed: Testbed) -> None:
    before, ends = testbed.read_status(), testbed.watch_ends()
    for name, command in (
        ("veth0", "link add veth0 type veth peer name veth1"),
        ("br0", "link add br0 type bridge"),
        ("ifb7", "link add ifb7 type ifb"),
        # Such as OpenVPN, or WireGuard without kernel support.
        ("tun7", "tuntap add dev tun7 mode tun"),
    ):
        ip(testbed, *command.split())
        ip(testbed, "link", "set", name, "up")
        ip(testbed, "addr", "add", "10.77.0.1/24", "dev", name)
        ip(testbed, "addr", "add", "fd77::1/64", "dev", name, "nodad")
        testbed.read_status()
        ip(testbed, "link", "del", name)
    testbed.let_it_renew()
    assert (ends(), testbed.read_status()["core_pid"]) == ([], before["core_pid"])
    # An interface that may lead out gets its egress guard first, but the core continues.
    ip(testbed, "link", "add", "vxlan7", "type", "vxlan", "id", "7", "dev", "eth0", "dstport", "4789")
    testbed.machine.wait_for(
        lambda: "vxlan7" in testbed.world.client.run(["nft", "list", "table", "netdev", "psiphon_egress"]).stdout,
        "its egress guard",
    )
    ip(testbed, "link", "del", "vxlan7")
    testbed.let_it_renew()
    assert testbed.machine.wait_state("OPEN")["core_pid"] == before["core_pid"]


@pytest.mark.requirement("R6")
def test_a_renamed_interface_is_followed_by_its_new_name(testbed: Testbed) -> None:
    mark = testbed.world.mark()
    client = testbed.world.client
    script = (
        f"link set eth0 down\nlink set eth0 name lan0\nlink set lan0 up\n"
        f"addr replace {LAN_A.client4}/{LAN_A.prefix4} dev lan0\n"
        f"route replace default via {LAN_A.router4} dev lan0 metric 100 proto dhcp\n"
    )
    client.run(["ip", "-batch", "-"], input=script)
    wait_uplink(testbed, "lan0")
    assert testbed.page() == plan.SERVER4
    client.run(["ip", "-batch", "-"], input=script.replace("lan0", "X").replace("eth0", "lan0").replace("X", "eth0"))
    ip(testbed, "addr", "add", f"{LAN_A.client6}/{LAN_A.prefix6}", "dev", "eth0", "nodad")
    ip(testbed, "-6", "route", "add", "default", "via", LAN_A.router6, "dev", "eth0", "metric", "100", "proto", "ra")
    wait_uplink(testbed, "eth0")
    testbed.assert_no_leak(mark)


@pytest.mark.requirement("R6", "B4")
def test_another_vpn_as_the_only_way_out_is_named_as_the_reason_and_its_end_opens_again(testbed: Testbed) -> None:
    """The core's packets reach the other program; what that program sends is stopped."""
    mark = testbed.world.mark()
    testbed.world.disconnect_uplink(LAN_A)
    testbed.machine.wait_state("LOCKED")
    other_vpn = testbed.world.client.call(lambda: attach_tun("tun0"))
    try:
        ip(testbed, "link", "set", "tun0", "up")
        ip(testbed, "addr", "add", "10.77.0.2/24", "dev", "tun0")
        ip(testbed, "route", "add", "default", "dev", "tun0")
        testbed.machine.wait_for(lambda: 6 in read_protocols(other_vpn), "the core's attempt to connect over it")
        status = wait_reason(testbed, "uplink_program")
        assert (status["locked"], status["lasting"], status["uplink"]["interface"]) == (True, True, "tun0")
        testbed.probe()
        assert read_protocols(other_vpn) <= {6}, "only the core's TCP"
    finally:
        os.close(other_vpn)
        testbed.world.connect_uplink(LAN_A)  # what the status says to do
    testbed.machine.wait_state("OPEN")
    wait_uplink(testbed, "eth0")
    testbed.assert_no_leak(mark)


@pytest.mark.requirement("R6", "B4")
def test_a_point_to_point_link_without_an_address_of_its_own_is_an_uplink_with_a_guard_of_its_own(
    testbed: Testbed,
) -> None:
    mark = testbed.world.mark()
    # Like pppd's: packets without a link-layer header, for a program that carries them to the other end.
    other_end = testbed.world.client.call(lambda: attach_tun("p2p0"))
    try:
        ip(testbed, "link", "set", "p2p0", "up")
        ip(testbed, "route", "add", "default", "dev", "p2p0", "metric", "5")
        testbed.machine.write_config('uplink = "p2p0"\n' + testbed.machine.config_path.read_text())
        testbed.machine.command("reload")
        testbed.machine.wait_for(
            lambda: (testbed.read_status()["uplink"] or {}).get("interface") == "p2p0", "the new uplink"
        )
        testbed.machine.wait_for(lambda: 6 in read_protocols(other_end), "the core's attempt to connect over it")
        assert testbed.read_status()["locked"] is True
        guard = testbed.world.client.run(["nft", "list", "table", "netdev", "psiphon_egress"]).stdout
        assert "p2p0" in guard
        testbed.probe()
        assert read_protocols(other_end) <= {6}, "only the core's TCP"
        shown = testbed.read_status()["uplink"]
        assert (shown["chosen"], shown["others"]) == ("named", ["eth0"])
    finally:
        os.close(other_end)
    # The named interface is gone: no other is taken.
    testbed.machine.wait_for(
        lambda: testbed.read_status()["reason_code"] == "uplink_absent", "locked without the named one"
    )
    testbed.machine.write_config()
    testbed.machine.command("reload")
    wait_uplink(testbed, "eth0")
    testbed.assert_no_leak(mark)


@pytest.mark.requirement("R6")
def test_a_network_that_comes_late_is_waited_for_without_work_and_taken_when_it_comes() -> None:
    with open_testbed(start=False) as testbed:
        testbed.world.disconnect_uplink(LAN_A)
        testbed.machine.start_daemon()
        status = testbed.machine.wait_state("LOCKED")
        assert (status["reason_code"], status["core_pid"], status["next_try"]) == ("no_uplink", None, None)
        log = testbed.machine.read_log()
        for _ in range(20):
            assert testbed.read_status()["next_try"] is None
        assert testbed.machine.read_log() == log, "nothing is tried, and nothing logged"
        testbed.world.connect_uplink(LAN_A)
        testbed.machine.wait_state("OPEN")


@pytest.mark.requirement("R6")
def test_addresses_that_come_one_after_the_other_end_in_an_open_tunnel_and_no_leak(testbed: Testbed) -> None:
    """As with a slow DHCP server, and router advertisements that come later."""
    mark = testbed.world.mark()
    testbed.world.disconnect_uplink(LAN_A)
    testbed.machine.wait_state("LOCKED")
    testbed.world.set_carrier(LAN_A, up=True)
    ip(testbed, "link", "set", "eth0", "up")
    testbed.read_status()  # the daemon gets its turn between these steps
    ip(testbed, "addr", "add", f"{LAN_A.client6}/{LAN_A.prefix6}", "dev", "eth0", "nodad")
    testbed.read_status()  # the daemon gets its turn between these steps
    ip(testbed, "addr", "add", f"{LAN_A.client4}/{LAN_A.prefix4}", "dev", "eth0")
    testbed.read_status()  # the daemon gets its turn between these steps
    ip(testbed, "route", "add", "default", "via", LAN_A.router4, "dev", "eth0", "metric", "100", "proto", "dhcp")
    testbed.read_status()  # the daemon gets its turn between these steps
    ip(testbed, "-6", "route", "add", "default", "via", LAN_A.router6, "dev", "eth0", "metric", "100", "proto", "ra")
    wait_uplink(testbed, "eth0")
    testbed.assert_no_leak(mark)
