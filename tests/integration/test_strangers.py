# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""psiphon-user is a uid and a gid together, and where the kernel can match it, a control group."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.testbed import Testbed, open_testbed

from psiphon_lab import addresses as plan
from psiphon_lab.addresses import LAN_A
from psiphon_lab.machine import LAB_UID
from psiphon_lab.probe_runner import NOBODY

pytestmark = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="needs root and namespaces")]

SEND = """
import contextlib, socket, struct, sys
token, device, targets = sys.argv[1].encode(), sys.argv[2], sys.argv[3:]
for target in targets:
    for bound in (False, True):
        with contextlib.suppress(OSError), socket.socket(
            socket.AF_INET6 if ":" in target else socket.AF_INET, socket.SOCK_DGRAM
        ) as sock:
            if bound:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
            sock.sendto(token, (target, 443))
"""
_numbers = iter(range(1000))


def send(testbed: Testbed, uid: int, gid: int) -> int:
    """Send datagrams with this uid and gid to the internet, both families, plain and bound; returns the number seen."""
    token = f"stranger-{next(_numbers):04d}"
    mark = testbed.world.mark()
    arguments = [token, LAN_A.interface, plan.INTERNET4, plan.INTERNET6]
    testbed.world.client.run([sys.executable, "-I", "-c", SEND, *arguments], uid=uid, gid=gid)
    return sum(token.encode() in frame.data for frame in testbed.world.frames_since(mark))


@pytest.mark.requirement("R5", "R7", "R19")
def test_somebody_with_one_of_psiphon_users_numbers_goes_nowhere_whichever_layer_is_asked() -> None:
    with open_testbed() as testbed:
        client, machine = testbed.world.client, testbed.machine
        strangers = ((LAB_UID, NOBODY), (NOBODY, LAB_UID))
        assert [send(testbed, *who) for who in strangers] == [0, 0], "all layers"
        # Only the guards, without the routing wall and the base table.
        machine.stop_daemon()
        client.run(["nft", "delete", "table", "inet", "psiphon_filter"])
        for family in ("-4", "-6"):
            client.run(["sh", "-c", f"while ip {family} rule del priority 5076; do :; done"], check=False)
        assert [send(testbed, *who) for who in strangers] == [0, 0], "the guards"
        assert send(testbed, LAB_UID, LAB_UID) > 0, "the guards let psiphon-user through"
        machine.release_guard()
        assert [send(testbed, *who) for who in strangers] == [0, 0], "the egress guard alone"
        assert send(testbed, LAB_UID, LAB_UID) > 0, "the egress guard lets psiphon-user through"
        client.run(["nft", "flush", "ruleset"])
        testbed.remove_card_filter()
        assert all(send(testbed, *who) for who in strangers), "the positive control"


GROUP = f"/sys/fs/cgroup/psiphon-lab-{os.getpid()}"
UNIT_GROUP = f"{GROUP}/psiphon-vpn.service"


def mount_groups(testbed: Testbed) -> None:
    """Mount the unified hierarchy where nft looks for it, only in the mount namespace of this lab host."""
    if testbed.world.client.run(["mount", "-t", "cgroup2", "none", "/sys/fs/cgroup"], check=False).returncode:
        pytest.skip("needs the unified hierarchy of control groups")


@contextlib.contextmanager
def unit_group(testbed: Testbed) -> Iterator[None]:
    """Put what starts in this block into a control group like the one of the service's unit."""
    client = testbed.world.client
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    before = next(line for line in lines if line.startswith("0::"))[3:]
    client.run(["mkdir", "-p", UNIT_GROUP])
    client.run(["sh", "-c", f"echo {os.getpid()} >{UNIT_GROUP}/cgroup.procs"])
    try:
        yield
    finally:
        client.run(["sh", "-c", f"echo {os.getpid()} >/sys/fs/cgroup{before}/cgroup.procs"])


def remove_group(testbed: Testbed) -> None:
    client = testbed.world.client
    testbed.machine.wait_for(
        lambda: not client.run(["rmdir", UNIT_GROUP, GROUP], check=False).returncode,
        "the end of the control group",
    )


@pytest.mark.requirement("R5", "R7", "R19")
def test_a_process_with_both_numbers_that_is_not_in_the_services_control_group_goes_nowhere() -> None:
    with open_testbed(start=False) as testbed:
        machine, client = testbed.machine, testbed.world.client
        mount_groups(testbed)
        with unit_group(testbed):
            machine.start_daemon()
        try:
            machine.wait_state("OPEN")
            base = client.run(["nft", "list", "chain", "inet", "psiphon_filter", "output"]).stdout
            assert 'socket cgroupv2 level 2 "psiphon-lab-' in base
            assert testbed.page(4), "the core itself is in the group"
            assert send(testbed, LAB_UID, LAB_UID) == 0
            # The control: the same process in the group.
            with unit_group(testbed):
                assert send(testbed, LAB_UID, LAB_UID) > 0
            # Another daemon, in a group with the same name and another id.
            machine.stop_daemon()
            remove_group(testbed)
            with unit_group(testbed):
                machine.start_daemon()
            machine.wait_state("OPEN")
            assert testbed.page(4)
            assert send(testbed, LAB_UID, LAB_UID) == 0
        finally:
            machine.stop_daemon()
            remove_group(testbed)
        # Without a service manager there is no such group: then only the two numbers distinguish.
        machine.start_daemon()
        machine.wait_state("OPEN")
        assert send(testbed, LAB_UID, LAB_UID) > 0
