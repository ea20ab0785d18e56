# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Sleep and waking (A18): closed before, checked and opened again after, as the sleep unit or a clock reports it.

The laboratory runs what the unit runs, as root on its client; tests/booted shows that systemd runs it in time.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.testbed import Testbed, open_testbed
from tests.lock_reading import read_lock

from psiphon_lab import addresses as plan
from psiphon_lab.addresses import LAN_A, LAN_B
from psiphon_lab.launch import clean_environment
from psiphon_vpn.policy import names
from psiphon_vpn.policy.own_tables import BASE
from psiphon_vpn.system.units import render_sleep_script

pytestmark = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="needs root and namespaces")]

SLEEPY = Path(__file__).with_name("sleepy_daemon.py")
SOURCES = Path(__file__).parents[2] / "src"
PROGRAM = "/usr/bin/psiphon-vpn"
PATIENT = (
    "import sys; sys.path[:0] = {path!r}; from psiphon_vpn import client; client.SLEEP_SECONDS = {seconds}; "
    "from psiphon_vpn.__main__ import main; main()"
)
SETS = (names.LEASE_SET, names.LEASE_SET_IPV6)


class Sleeper:
    """Does what psiphon-sleep.service does.

    Args:
        testbed: whose client sleeps.
        seconds: how long the script waits for the service.
    """

    def __init__(self, testbed: Testbed, *, seconds: int = 60) -> None:
        self._testbed = testbed
        directory = testbed.world.directory
        command = directory / f"command{seconds}"
        code = PATIENT.format(path=[str(SOURCES), *sys.path], seconds=seconds)
        command.write_text(
            f'#!/bin/sh\nexec {sys.executable} -c "{code}" --runtime-dir {testbed.machine.runtime_dir} "$@"\n'
        )
        self._script = directory / f"sleep{seconds}"
        text = render_sleep_script()
        assert f"timeout -s KILL 15 {PROGRAM} " in text
        self._script.write_text(text.replace(f"KILL 15 {PROGRAM}", f"KILL {seconds} {command}"))
        for path in (command, self._script):
            path.chmod(0o755)

    def call(self, word: str) -> subprocess.CompletedProcess[str]:
        return self._testbed.world.client.run([self._script, word], check=False, env=clean_environment(), timeout=180)

    def begin(self) -> None:
        """The service closes; returns when the machine may sleep."""
        done = self.call("begin")
        assert (done.returncode, done.stderr) == (0, ""), "the service itself closed"
        assert not self._testbed.machine.lease_remains()

    def end(self) -> None:
        """The machine has woken up, and the service is notified."""
        done = self.call("end")
        assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture(scope="module")
def _testbed() -> Iterator[Testbed]:
    with open_testbed() as made:
        yield made


@pytest.fixture
def testbed(_testbed: Testbed) -> Testbed:
    _testbed.machine.wait_state("OPEN")
    _testbed.machine.wait_for(_testbed.machine.lease_remains, "the lease")
    return _testbed


@pytest.mark.requirement("R3", "R6", "R17")
def test_before_sleep_the_lease_is_gone_from_the_kernel_before_the_machine_may_sleep(testbed: Testbed) -> None:
    machine, sleeper = testbed.machine, Sleeper(testbed)
    mark = testbed.world.mark()
    sleeper.begin()
    status = testbed.read_status()
    assert (status["state"], status["reason_code"], status["locked"]) == ("LOCKED", "sleeping", True)
    machine.wait_for(lambda: testbed.read_status()["core_pid"] is None, "the core's end")
    testbed.probe()
    sleeper.end()
    machine.wait_state("OPEN")
    assert testbed.page() == plan.SERVER4
    testbed.assert_no_leak(mark)


@pytest.mark.requirement("R6", "R17")
def test_a_machine_that_wakes_on_another_network_opens_there_and_nothing_leaks(testbed: Testbed) -> None:
    world, sleeper = testbed.world, Sleeper(testbed)
    mark = world.mark()
    sleeper.begin()
    world.disconnect_uplink(LAN_A)
    world.connect_uplink(LAN_B)
    testbed.machine.wait_for(
        lambda: (testbed.read_status().get("uplink") or {}).get("interface") == LAN_B.interface, "the other network"
    )
    assert testbed.read_status()["reason_code"] == "sleeping", "a new network does not wake the service"
    sleeper.end()
    status = testbed.machine.wait_state("OPEN")
    assert status["uplink"]["interface"] == LAN_B.interface
    testbed.probe(LAN_B)
    world.move_to_provider_a()
    testbed.machine.wait_state("OPEN")
    testbed.assert_no_leak(mark)


@pytest.mark.requirement("R6")
def test_a_machine_that_wakes_without_a_network_waits_for_one(testbed: Testbed) -> None:
    world, sleeper = testbed.world, Sleeper(testbed)
    sleeper.begin()
    world.disconnect_uplink(LAN_A)
    sleeper.end()
    testbed.machine.wait_for(lambda: testbed.read_status()["reason_code"] == "no_uplink", "the reason")
    world.connect_uplink(LAN_A)
    testbed.machine.wait_state("OPEN")


def lease_for_long(testbed: Testbed) -> None:
    """Put a lease that lasts ten minutes into the kernel, so that it cannot run out before the sets are emptied."""
    for name in SETS:
        testbed.world.client.run(
            ["nft", "add", "element", *str(BASE).split(), name, f"{{ {names.TUN_NAME} timeout 10m }}"]
        )
    assert all(is_leased(testbed, name) for name in SETS), "the control"


def is_leased(testbed: Testbed, name: str) -> bool:
    return "elements" in testbed.world.client.run(["nft", "list", "set", *str(BASE).split(), name]).stdout


@pytest.mark.requirement("R1", "R2", "R6", "R17", "B2")
def test_where_the_service_hangs_the_tunnel_is_closed_without_it_and_the_machine_sleeps(testbed: Testbed) -> None:
    machine = testbed.machine
    mark = testbed.world.mark()
    machine.signal_daemon(signal.SIGSTOP)
    try:
        for name in SETS:
            testbed.world.client.run(["nft", "flush", "set", *str(BASE).split(), name])
        lease_for_long(testbed)
        done = Sleeper(testbed, seconds=2).call("begin")
        assert done.returncode == 0
        assert "closing it without the service" in done.stderr
        assert not any(is_leased(testbed, name) for name in SETS)
        testbed.probe()
    finally:
        machine.signal_daemon(signal.SIGCONT)
    # The notification waits for it: nothing opens until the end of the sleep is reported too.
    machine.wait_for(lambda: testbed.read_status()["reason_code"] == "sleeping", "the reason")
    Sleeper(testbed).end()
    machine.wait_state("OPEN")
    testbed.assert_no_leak(mark)


@pytest.mark.requirement("R1", "R2", "R6", "R17", "B2")
def test_where_no_service_runs_what_it_left_open_is_closed_before_sleep(testbed: Testbed) -> None:
    machine = testbed.machine
    machine.kill_daemon()
    lease_for_long(testbed)
    done = Sleeper(testbed).call("begin")
    assert done.returncode == 0
    assert not any(is_leased(testbed, name) for name in SETS)
    assert read_lock(testbed.world.client).locked is True
    assert "was not notified" in Sleeper(testbed).call("end").stderr
    machine.start_daemon()
    machine.wait_state("OPEN")


@pytest.mark.requirement("R6")
def test_a_sleep_that_was_announced_and_does_not_come_is_given_up_for(testbed: Testbed) -> None:
    Sleeper(testbed).begin()
    assert testbed.read_status()["next_try"] is not None


@pytest.mark.requirement("R6", "R17")
def test_without_an_announcement_a_clock_that_jumped_closes_checks_and_opens_again() -> None:
    with open_testbed(start=False) as testbed:
        slept = testbed.world.directory / "slept"
        slept.write_text("100")
        slept.chmod(0o644)
        testbed.machine.program = [str(SLEEPY), str(slept)]
        testbed.machine.start_daemon()
        first = testbed.machine.wait_state("OPEN")
        mark = testbed.world.mark()
        other = slept.with_name("slept.new")
        other.write_text("101.5")
        other.chmod(0o644)
        other.replace(slept)
        testbed.machine.wait_for(
            lambda: (now := testbed.read_status())["state"] == "OPEN" and now["core_pid"] != first["core_pid"],
            "a new core",
        )
        assert "woke" in testbed.machine.read_log()
        assert read_lock(testbed.world.client).locked is True
        assert testbed.page() == plan.SERVER4
        testbed.assert_no_leak(mark)
