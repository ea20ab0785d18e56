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
from tests.integration.stage import Stage, open_stage
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
        stage: whose client sleeps.
        seconds: how long the script waits for the service.
    """

    def __init__(self, stage: Stage, *, seconds: int = 60) -> None:
        self._stage = stage
        directory = stage.world.directory
        command = directory / f"command{seconds}"
        code = PATIENT.format(path=[str(SOURCES), *sys.path], seconds=seconds)
        command.write_text(
            f'#!/bin/sh\nexec {sys.executable} -c "{code}" --runtime-dir {stage.machine.runtime_dir} "$@"\n'
        )
        self._script = directory / f"sleep{seconds}"
        text = render_sleep_script()
        assert f"timeout -s KILL 15 {PROGRAM} " in text
        self._script.write_text(text.replace(f"KILL 15 {PROGRAM}", f"KILL {seconds} {command}"))
        for path in (command, self._script):
            path.chmod(0o755)

    def call(self, word: str) -> subprocess.CompletedProcess[str]:
        return self._stage.world.client.run([self._script, word], check=False, env=clean_environment(), timeout=180)

    def begin(self) -> None:
        """The service closes; returns when the machine may sleep."""
        done = self.call("begin")
        assert (done.returncode, done.stderr) == (0, ""), "the service itself closed"
        assert not self._stage.machine.lease_remains()

    def end(self) -> None:
        """The machine has woken up, and the service is notified."""
        done = self.call("end")
        assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture(scope="module")
def _stage() -> Iterator[Stage]:
    with open_stage() as made:
        yield made


@pytest.fixture
def stage(_stage: Stage) -> Stage:
    _stage.machine.wait_state("OPEN")
    _stage.machine.wait_for(_stage.machine.lease_remains, "the lease")
    return _stage


@pytest.mark.requirement("R3", "R6", "R17")
def test_before_sleep_the_lease_is_gone_from_the_kernel_before_the_machine_may_sleep(stage: Stage) -> None:
    machine, sleeper = stage.machine, Sleeper(stage)
    mark = stage.world.mark()
    sleeper.begin()
    status = stage.read_status()
    assert (status["state"], status["reason_code"], status["locked"]) == ("LOCKED", "sleeping", True)
    machine.wait_for(lambda: stage.read_status()["core_pid"] is None, "the core's end")
    stage.probe()
    sleeper.end()
    machine.wait_state("OPEN")
    assert stage.page() == plan.SERVER4
    stage.assert_no_leak(mark)


@pytest.mark.requirement("R6", "R17")
def test_a_machine_that_wakes_on_another_network_opens_there_and_nothing_leaks(stage: Stage) -> None:
    world, sleeper = stage.world, Sleeper(stage)
    mark = world.mark()
    sleeper.begin()
    world.disconnect_uplink(LAN_A)
    world.connect_uplink(LAN_B)
    stage.machine.wait_for(
        lambda: (stage.read_status().get("uplink") or {}).get("interface") == LAN_B.interface, "the other network"
    )
    assert stage.read_status()["reason_code"] == "sleeping", "a new network does not wake the service"
    sleeper.end()
    status = stage.machine.wait_state("OPEN")
    assert status["uplink"]["interface"] == LAN_B.interface
    stage.probe(LAN_B)
    world.move_to_provider_a()
    stage.machine.wait_state("OPEN")
    stage.assert_no_leak(mark)


@pytest.mark.requirement("R6")
def test_a_machine_that_wakes_without_a_network_waits_for_one(stage: Stage) -> None:
    world, sleeper = stage.world, Sleeper(stage)
    sleeper.begin()
    world.disconnect_uplink(LAN_A)
    sleeper.end()
    stage.machine.wait_for(lambda: stage.read_status()["reason_code"] == "no_uplink", "the reason")
    world.connect_uplink(LAN_A)
    stage.machine.wait_state("OPEN")


def lease_for_long(stage: Stage) -> None:
    """Put a lease that lasts ten minutes into the kernel, so that it cannot run out before the sets are emptied."""
    for name in SETS:
        stage.world.client.run(
            ["nft", "add", "element", *str(BASE).split(), name, f"{{ {names.TUN_NAME} timeout 10m }}"]
        )
    assert all(is_leased(stage, name) for name in SETS), "the control"


def is_leased(stage: Stage, name: str) -> bool:
    return "elements" in stage.world.client.run(["nft", "list", "set", *str(BASE).split(), name]).stdout


@pytest.mark.requirement("R1", "R2", "R6", "R17", "B2")
def test_where_the_service_hangs_the_tunnel_is_closed_without_it_and_the_machine_sleeps(stage: Stage) -> None:
    machine = stage.machine
    mark = stage.world.mark()
    machine.signal_daemon(signal.SIGSTOP)
    try:
        for name in SETS:
            stage.world.client.run(["nft", "flush", "set", *str(BASE).split(), name])
        lease_for_long(stage)
        done = Sleeper(stage, seconds=2).call("begin")
        assert done.returncode == 0
        assert "closing it without the service" in done.stderr
        assert not any(is_leased(stage, name) for name in SETS)
        stage.probe()
    finally:
        machine.signal_daemon(signal.SIGCONT)
    # The notification waits for it: nothing opens until the end of the sleep is reported too.
    machine.wait_for(lambda: stage.read_status()["reason_code"] == "sleeping", "the reason")
    Sleeper(stage).end()
    machine.wait_state("OPEN")
    stage.assert_no_leak(mark)


@pytest.mark.requirement("R1", "R2", "R6", "R17", "B2")
def test_where_no_service_runs_what_it_left_open_is_closed_before_sleep(stage: Stage) -> None:
    machine = stage.machine
    machine.kill_daemon()
    lease_for_long(stage)
    done = Sleeper(stage).call("begin")
    assert done.returncode == 0
    assert not any(is_leased(stage, name) for name in SETS)
    assert read_lock(stage.world.client).locked is True
    assert "was not notified" in Sleeper(stage).call("end").stderr
    machine.start_daemon()
    machine.wait_state("OPEN")


@pytest.mark.requirement("R6")
def test_a_sleep_that_was_announced_and_does_not_come_is_given_up_for(stage: Stage) -> None:
    Sleeper(stage).begin()
    assert stage.read_status()["next_try"] is not None


@pytest.mark.requirement("R6", "R17")
def test_where_nobody_tells_a_clock_that_jumped_closes_checks_and_opens_anew() -> None:
    with open_stage(start=False) as stage:
        slept = stage.world.directory / "slept"
        slept.write_text("100")
        slept.chmod(0o644)
        stage.machine.program = [str(SLEEPY), str(slept)]
        stage.machine.start_daemon()
        first = stage.machine.wait_state("OPEN")
        mark = stage.world.mark()
        other = slept.with_name("slept.new")
        other.write_text("101.5")
        other.chmod(0o644)
        other.replace(slept)
        stage.machine.wait_for(
            lambda: (now := stage.read_status())["state"] == "OPEN" and now["core_pid"] != first["core_pid"],
            "a new core",
        )
        assert "woke" in stage.machine.read_log()
        assert read_lock(stage.world.client).locked is True
        assert stage.page() == plan.SERVER4
        stage.assert_no_leak(mark)
