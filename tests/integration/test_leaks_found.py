# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Leaks that the leak test found; each test was red then."""

from __future__ import annotations

import contextlib
import os
import select
import time

import pytest
from tests.integration.testbed import Testbed, open_testbed

from psiphon_lab import addresses as plan
from psiphon_lab import packet_builder
from psiphon_lab.addresses import LAN_A
from psiphon_lab.sending import send_bytes
from psiphon_lab.waiting import wait_until

pytestmark = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="needs root and namespaces")]


def _send_frames(testbed: Testbed, token: bytes, *, count: int = 20) -> int:
    """Send raw frames of root on the uplink; returns how many came out."""
    packet = packet_builder.udp_packet(LAN_A.client4, plan.INTERNET4, (9999, 9), token)
    data = packet_builder.ip_frame(packet_builder.BROADCAST_MAC, LAN_A.mac, packet)

    def send() -> None:
        for _ in range(count):
            with contextlib.suppress(OSError):
                send_bytes(LAN_A.interface, data)
            time.sleep(0.002)

    mark = testbed.world.mark()
    testbed.world.client.call(send)
    return sum(token in frame.data for frame in testbed.world.frames_since(mark))


@pytest.mark.requirement("B4")
def test_raw_frames_are_stopped_at_boot_before_there_is_a_daemon_and_after_a_flush() -> None:
    with open_testbed(start=False) as testbed:
        assert _send_frames(testbed, b"at-boot") == 0
        testbed.world.client.run(["nft", "flush", "ruleset"])
        assert _send_frames(testbed, b"flushed") == 0
        testbed.machine.reload_guard()
        assert _send_frames(testbed, b"upgraded") == 0
        # The positive control: without the holder and the daemon nothing stops them.
        testbed.machine.release_guard()
        assert _send_frames(testbed, b"unguarded") == 20


@pytest.mark.requirement("B4")
def test_a_daemon_that_starts_leaves_the_egress_guard_of_the_one_before_standing() -> None:
    with open_testbed() as testbed:
        testbed.machine.stop_daemon()
        testbed.machine.release_guard()
        client = testbed.world.client
        before = client.run(["nft", "list", "table", "netdev", "psiphon_egress"]).stdout
        assert "eth0" in before
        monitor = client.spawn(["nft", "monitor", "ruleset"], stdout=-1)
        assert monitor.stdout is not None
        pipe = monitor.stdout.fileno()

        def hears() -> bool:
            client.run(["nft", "add table inet heard; delete table inet heard"])
            return bool(select.select([pipe], [], [], 0)[0])

        wait_until(hears, "the monitor")
        testbed.machine.start_daemon()
        testbed.machine.wait_state("OPEN")
        monitor.terminate()
        reported = monitor.communicate()[0].decode()
        assert "psiphon_filter" in reported, "the positive control"
        # The guard is only replaced in one transaction: announced as deleted, and at once as new.
        deleted, added = "delete table netdev psiphon_egress", "add table netdev psiphon_egress"
        gone = [block for block in reported.split("# new generation") if deleted in block and added not in block]
        assert not gone


@pytest.mark.requirement("R5", "R9")
def test_a_core_whose_route_is_gone_does_not_ask_the_link_for_its_server() -> None:
    with open_testbed() as testbed:
        mark = testbed.world.mark()
        client = testbed.world.client
        for family in ("-4", "-6"):
            client.run(["ip", family, "route", "flush", "table", "main", "proto", "dhcp"], check=False)
            client.run(["ip", family, "rule", "flush"])
        time.sleep(1.2)
        testbed.assert_no_leak(mark)
