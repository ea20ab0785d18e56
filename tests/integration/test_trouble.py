# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Trouble of the daemon: memory, disks, clocks, floods. It ends locked, with a typed reason or a new daemon."""

from __future__ import annotations

import os
import signal
import socket
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.integration.testbed import Testbed, open_testbed
from tests.integration.troubles import read_cpu_seconds, wait_reason
from tests.lock_reading import read_lock

from psiphon_lab import addresses as plan
from psiphon_lab.machine import LAB_UID
from psiphon_lab.namespace import LabError
from psiphon_lab.waiting import wait_until

pytestmark = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="needs root and namespaces")]

JUMPY = Path(__file__).with_name("jumpy_daemon.py")


@pytest.fixture
def testbed(reopened_testbed: Testbed) -> Testbed:
    return reopened_testbed


@pytest.mark.requirement("R1", "R2", "R17")
def test_a_wall_clock_that_jumps_by_years_neither_closes_nor_opens_nor_ends_nor_spins_anything() -> None:
    year = 365 * 86400.0
    with open_testbed(start=False) as testbed:
        machine = testbed.machine
        offset = testbed.world.directory / "offset"

        def jump(seconds: float) -> None:
            beside = offset.with_name("offset.new")
            beside.write_text(str(seconds))
            beside.chmod(0o644)
            beside.replace(offset)
            if machine.read_status() is not None:
                machine.signal_daemon(signal.SIGUSR1)

        jump(0)
        machine.program = [str(JUMPY), str(offset)]
        machine.start_daemon()
        first = machine.wait_state("OPEN")
        machine.wait_for(machine.lease_remains, "the lease")
        cpu = read_cpu_seconds(machine.daemon_pid)
        begin = time.monotonic()
        for seconds in (40 * year, -50 * year, 3600.0, -3600.0, 150 * year):
            jump(seconds)
            testbed.let_it_renew()
            assert machine.lease_remains()
            status = testbed.read_status()
            assert (status["state"], status["core_pid"]) == ("OPEN", first["core_pid"])
            reported = datetime.fromisoformat(status["since"]) - datetime.now(UTC)
            assert abs(reported.total_seconds() - seconds) < 60, "`since` follows the clock as it is now"
            assert abs(status["clock_skew_seconds"] - seconds) < 5
        # The test's own status requests and listings cost some processor time; a loop would use all of it.
        assert read_cpu_seconds(machine.daemon_pid) - cpu < 0.5 * (time.monotonic() - begin)
        assert testbed.page() == plan.SERVER4
        # Locked and waiting for a timer: the wait does not change, only the time of day that is shown for its end.
        jump(-50 * year)
        testbed.set_faults({"kind": "exit", "code": 1})  # this also ends the running core

        def waits() -> bool:
            status = testbed.read_status()
            return status["core_pid"] != first["core_pid"] and status["next_try_what"] is not None

        machine.wait_for(waits, "the next try")
        jump(50 * year)
        testbed.set_faults()
        machine.wait_state("OPEN")
        assert machine.read_log().count("has slept") == 0


@pytest.mark.requirement("R1")
def test_a_full_disk_keeps_it_locked_is_named_and_is_recovered_from_by_itself() -> None:
    with open_testbed(start=False) as testbed:
        # A separate file system on the client, with almost no room.
        state = testbed.machine.state_dir
        testbed.world.client.run(
            ["mount", "-t", "tmpfs", "-o", "size=16k,mode=700,uid=64190,gid=64190", "tmpfs", state]
        )
        testbed.world.client.run(["mkdir", "-m", "700", state / "core"])
        testbed.world.client.run(["chown", "64190:64190", state / "core"])
        testbed.world.client.run(["dd", "if=/dev/zero", f"of={state}/ballast", "bs=1k", "count=64"], check=False)
        testbed.machine.start_daemon()
        status = wait_reason(testbed, "disk")
        assert (status["state"], status["locked"]) == ("LOCKED", True)
        assert "room" in status["next_step"]
        testbed.machine.command("stop")  # the intent cannot be stored, but it is obeyed
        assert testbed.machine.wait_state("LOCKED")["reason_code"] == "stopped_by_user"
        testbed.machine.command("start")
        testbed.world.client.run(["rm", f"{state}/ballast"])
        testbed.machine.wait_state("OPEN")


@pytest.mark.requirement("R1")
def test_a_read_only_state_directory_keeps_it_locked_and_is_named() -> None:
    with open_testbed(start=False) as testbed:
        state = testbed.machine.state_dir
        testbed.world.client.run(["mount", "--bind", state, state])
        testbed.world.client.run(["mount", "-o", "remount,bind,ro", state])
        testbed.machine.start_daemon()
        status = wait_reason(testbed, "disk")
        assert (status["state"], status["locked"]) == ("LOCKED", True)
        testbed.world.client.run(["mount", "-o", "remount,bind,rw", state])
        testbed.machine.wait_state("OPEN")


@pytest.mark.requirement("R1", "R2")
def test_a_storm_of_netlink_messages_that_overruns_its_socket_ends_with_a_look_at_everything(testbed: Testbed) -> None:
    """The daemon is stopped while the kernel's messages pile up; one of the lost messages is about a change."""
    client = testbed.world.client
    batch = "\n".join(
        f"route add unreachable 198.18.{i // 250}.{i % 250}/32\nroute del unreachable 198.18.{i // 250}.{i % 250}/32"
        for i in range(5000)
    )
    testbed.machine.signal_daemon(signal.SIGSTOP)
    try:
        for _ in range(3):
            client.run(["ip", "-batch", "-"], input=batch, timeout=60)
        client.run(["ip", "route", "flush", "table", "20595"])
    finally:
        testbed.machine.signal_daemon(signal.SIGCONT)
    testbed.machine.wait_for(lambda: "were missed" in testbed.machine.read_log(), "the overrun")
    testbed.machine.wait_for(
        lambda: testbed.read_status()["state"] == "OPEN" and testbed.page() == plan.SERVER4, "an open tunnel"
    )
    assert read_lock(client).locked is True


@pytest.mark.requirement("R24")
def test_hundreds_of_idle_clients_and_floods_of_garbage_keep_neither_the_lease_nor_root_waiting(
    testbed: Testbed,
) -> None:
    path = str(testbed.machine.runtime_dir / "control.sock")
    ends = testbed.watch_ends()
    idle: list[socket.socket] = []
    refused = 0
    try:
        for number in range(400):
            one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            one.settimeout(1)
            try:
                one.connect(path)
                if number % 2:
                    one.sendall(os.urandom(3000) + b"\n" + b"{" * 2000)
            except OSError:
                refused += 1
            idle.append(one)
        testbed.let_it_renew(3)  # longer than a lease
        testbed.machine.wait_for(testbed.machine.lease_remains, "the lease")
    finally:
        for one in idle:
            one.close()
    testbed.machine.wait_for(lambda: testbed.machine.read_status() is not None, "an answer")
    assert ends() == []
    assert testbed.machine.read_resident_kib() < 64 * 1024


@pytest.mark.requirement("R2", "R24")
def test_a_daemon_that_may_have_no_more_memory_leaves_a_locked_machine() -> None:
    with open_testbed() as testbed:
        mark = testbed.world.mark()
        pid = testbed.machine.daemon_pid
        # The kernel refuses it any further memory, as at a service's own limit, and it has no room to start a program.
        # It may have enough to restore the tables, but not to read them back.
        testbed.world.client.run(["prlimit", f"--pid={pid}", f"--as={1 << 20}"], uid=LAB_UID, gid=LAB_UID)
        testbed.world.client.run(["nft", "flush", "ruleset"])

        def has_closed() -> bool:
            return not testbed.machine.lease_remains() and (testbed.machine.read_status() or {}).get("state") != "OPEN"

        wait_until(has_closed, "the end of the lease, and of the open status")
        assert read_lock(testbed.world.client).locked is True
        assert not testbed.machine.lease_remains()
        assert len(testbed.machine.read_log()) < 100_000, "it neither hangs nor fails again and again in the same place"
        with pytest.raises(LabError, match=r"the daemon ended|not OPEN"):
            testbed.machine.wait_state("OPEN", seconds=0.5)
        testbed.assert_no_leak(mark)
        testbed.machine.kill_daemon()
        testbed.machine.start_daemon()
        testbed.machine.wait_state("OPEN")
