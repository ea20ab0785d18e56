# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's own entries for the TUN's addresses are removed under the real service: it opens again each time."""

from __future__ import annotations

import pytest
from tests.integration.testbed import Testbed, open_testbed

from psiphon_lab import addresses as plan
from psiphon_lab.addresses import LAN_A
from psiphon_vpn.policy import names

pytestmark = [pytest.mark.lab, pytest.mark.requirement("R9", "B3")]

TUN = names.TUN_NAME
ATTACKS = {
    "the TUN's address in the table local": f"ip route del local {names.TUN_IPV4} dev {TUN} table local",
    "everything of the TUN in the table local": f"ip route flush dev {TUN} table local",
    "everything of the TUN in the IPv6 table local": f"ip -6 route flush dev {TUN} table local",
    "the loopback network": "ip route flush dev lo table local",
    "all of the table local": "ip route flush table local",
    "all of the table local, again and again": (
        "for i in 1 2 3 4 5 6 7 8; do ip route flush table local; ip -6 route flush table local; sleep 0.1; done"
    ),
    "the TUN's addresses": f"ip addr flush dev {TUN}",
    "the rules of the table local": "ip rule del pref 0; ip -6 rule del pref 0",
    "a TUN that goes down and up, again and again": (
        f"for i in 1 2 3 4 5 6; do ip link set {TUN} down; ip link set {TUN} up; sleep 0.05; done"
    ),
    "a TUN that is set down again and again": f"for i in $(seq 30); do ip link set {TUN} down; sleep 0.05; done",
    "a TUN that is deleted again and again": f"for i in $(seq 30); do ip link del {TUN}; sleep 0.05; done; true",
    "a TUN that is deleted as the blow that begins a fight": (
        f"for i in 1 2 3 4 5 6; do nft flush chain inet psiphon_filter output; sleep 0.1; done; ip link del {TUN}"
    ),
    "the room for packets that wait in the TUN": f"ip link set {TUN} txqueuelen 0",
    "the way of packets into the TUN": f"tc qdisc replace dev {TUN} root pfifo limit 0",
}
LOG_LINES = 60
"""Of one attack and what follows."""


def wait_for_page(testbed: Testbed) -> None:
    """Wait until a page comes through the tunnel."""
    testbed.machine.wait_for(
        lambda: testbed.machine.lease_remains() and testbed.page(4) == plan.SERVER4, "a page", seconds=60
    )


@pytest.mark.parametrize("what", ATTACKS)
def test_what_was_taken_is_put_back_and_it_opens_again(what: str) -> None:
    with open_testbed() as testbed:
        testbed.machine.wait_state("OPEN")
        mark, lines = testbed.world.mark(), len(testbed.machine.read_log().splitlines())
        testbed.world.client.run(["sh", "-c", ATTACKS[what]])
        wait_for_page(testbed)
        testbed.machine.wait_for(
            lambda: (
                f"local {names.TUN_IPV4}" in testbed.world.client.run(["ip", "route", "show", "table", "local"]).stdout
            ),
            "the kernel's entry",
        )
        testbed.machine.wait_state("OPEN")
        wait_for_page(testbed)
        assert len(testbed.machine.read_log().splitlines()) - lines < LOG_LINES
        testbed.assert_no_leak(mark)


def test_all_tables_are_flushed_again_and_again() -> None:
    with open_testbed() as testbed:
        machine, client = testbed.machine, testbed.world.client
        machine.wait_state("OPEN")
        mark, lines = testbed.world.mark(), len(machine.read_log().splitlines())
        before = client.run(["ip", "route", "show", "table", "main"]).stdout.splitlines()
        flush = "ip route flush table all; ip -6 route flush table all"
        client.run(["sh", "-c", f"for i in $(seq 40); do {flush}; sleep 0.05; done"], timeout=60)
        testbed.probe()
        # What the network manager would restore: its card's addresses, with the kernel's own entries, and its routes.
        client.run(["ip", "link", "set", LAN_A.interface, "down"])
        client.run(["ip", "link", "set", LAN_A.interface, "up"])
        for route in sorted(before, key=lambda line: line.startswith("default")):
            client.run(["ip", "route", "replace", *route.split()], check=False)
        wait_for_page(testbed)
        machine.wait_state("OPEN")
        assert len(machine.read_log().splitlines()) - lines < 4 * LOG_LINES
        testbed.assert_no_leak(mark)


DETOURS = {
    "a rule without a priority": ("ip rule add table main", "ip rule del table main pref 5069"),
    "a second rule of the first priority": ("ip rule add pref 0 table main", "ip rule del pref 0 table main"),
    "half of the internet, as VPNs route": (
        "ip rule add to 128.0.0.0/1 table main",
        "ip rule del to 128.0.0.0/1 table main",
    ),
}


@pytest.mark.parametrize("what", DETOURS)
def test_a_rule_of_others_that_leads_around_the_tunnel_is_reported_and_it_opens_again_without_it(what: str) -> None:
    add, remove = DETOURS[what]
    with open_testbed() as testbed:
        machine, client = testbed.machine, testbed.world.client
        mark, lines = testbed.world.mark(), len(machine.read_log().splitlines())
        client.run(["sh", "-c", add])
        machine.wait_for(lambda: (machine.read_status() or {})["reason_code"] == "led_around", "the reason")
        assert (machine.read_status() or {})["state"] == "LOCKED"
        testbed.probe()
        client.run(["sh", "-c", remove])
        wait_for_page(testbed)
        assert len(machine.read_log().splitlines()) - lines < LOG_LINES
        testbed.assert_no_leak(mark)


def test_a_rule_of_others_that_leads_nothing_around_the_tunnel_disturbs_nobody() -> None:
    with open_testbed() as testbed:
        core = (testbed.machine.read_status() or {})["core_pid"]
        testbed.world.client.run(["ip", "rule", "add", "from", "10.77.0.0/16", "table", "main"])
        testbed.world.client.run(["ip", "rule", "add", "fwmark", "0x77", "table", "77"])
        wait_for_page(testbed)
        assert (testbed.machine.read_status() or {})["core_pid"] == core
