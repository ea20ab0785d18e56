"""Sleep and waking (A18): closed before it, checked and opened anew after it, with logind and without."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.buses import Logind, run_bus, run_mock, wait_until
from tests.integration.stage import Stage, open_stage

from psiphon_lab import addresses as plan
from psiphon_lab.addresses import LAN_A, LAN_B
from psiphon_vpn.linux.lockstate import read_lock_state

pytestmark = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="needs root and namespaces")]

SLEEPY = Path(__file__).with_name("sleepy_daemon.py")


@dataclass
class Bed:
    """A stage with a logind."""

    stage: Stage
    logind: Logind
    address: str

    def wait_inhibitor(self, count: int) -> float:
        return wait_until(lambda: self.logind.inhibitors() == count, f"{count} delay locks")


@contextlib.contextmanager
def open_bed() -> Iterator[Bed]:
    with (
        open_stage(start=False) as stage,
        run_bus(stage.machine.bus_path, stage.world.client) as (address, _bus),
        run_mock(address, "logind"),
    ):
        bed = Bed(stage, Logind(address), address)
        stage.machine.start_daemon()
        bed.wait_inhibitor(1)
        stage.machine.wait_state("OPEN")
        stage.machine.wait_for(stage.machine.lease_remains, "the lease")
        yield bed


@pytest.fixture(scope="module")
def _bed() -> Iterator[Bed]:
    with open_bed() as made:
        yield made


@pytest.fixture
def bed(_bed: Bed) -> Bed:
    _bed.stage.machine.wait_state("OPEN")
    _bed.stage.machine.wait_for(_bed.stage.machine.lease_remains, "the lease")
    _bed.wait_inhibitor(1)
    return _bed


def status_of(stage: Stage) -> dict[str, Any]:
    status = stage.machine.read_status()
    assert status is not None
    return status


@pytest.mark.requirement("R3", "R6", "R17")
def test_before_sleep_the_lease_is_gone_from_the_kernel_before_the_machine_may_sleep(bed: Bed) -> None:
    machine = bed.stage.machine
    mark = bed.stage.world.mark()
    bed.logind.announce(sleep=True)
    remained = True
    while bed.logind.inhibitors():
        remained = machine.lease_remains()
    # What was read last, while the delay lock was still held, or what is read now that the machine may sleep.
    assert not (remained and machine.lease_remains())
    status = status_of(bed.stage)
    assert (status["state"], status["reason_code"], status["locked"]) == ("LOCKED", "sleeping", True)
    assert status["core_pid"] is None
    bed.stage.probe()
    bed.logind.announce(sleep=False)
    status = machine.wait_state("OPEN")
    bed.wait_inhibitor(1)
    assert bed.stage.page() == plan.SERVER4
    bed.stage.assert_no_leak(mark)


@pytest.mark.requirement("R6", "R17")
def test_a_machine_that_wakes_on_another_network_opens_there_and_nothing_leaks(bed: Bed) -> None:
    world = bed.stage.world
    mark = world.mark()
    bed.logind.announce(sleep=True)
    bed.wait_inhibitor(0)
    world.disconnect_uplink(LAN_A)
    world.connect_uplink(LAN_B)
    time.sleep(0.3)
    assert status_of(bed.stage)["reason_code"] == "sleeping", "a network that comes does not wake it"
    bed.logind.announce(sleep=False)
    status = bed.stage.machine.wait_state("OPEN")
    assert status["uplink"]["interface"] == LAN_B.interface
    bed.stage.probe(LAN_B)
    world.move_to_provider_a()
    bed.stage.machine.wait_state("OPEN")
    bed.stage.assert_no_leak(mark)


@pytest.mark.requirement("R6")
def test_a_machine_that_wakes_without_a_network_waits_for_one(bed: Bed) -> None:
    world = bed.stage.world
    bed.logind.announce(sleep=True)
    bed.wait_inhibitor(0)
    world.disconnect_uplink(LAN_A)
    bed.logind.announce(sleep=False)
    bed.stage.machine.wait_for(lambda: status_of(bed.stage)["reason_code"] == "no_uplink", "the reason")
    world.connect_uplink(LAN_A)
    bed.stage.machine.wait_state("OPEN")


def test_a_stranger_on_the_bus_cannot_make_it_believe_in_sleep(bed: Bed) -> None:
    before = status_of(bed.stage)["since"]
    with run_mock(bed.address, "logind"):  # its name is taken: it gets none, and sends all the same
        Logind(bed.address)
        bed.stage.world.client.run(
            ["dbus-send", f"--bus={bed.address}", "--type=signal", "/org/freedesktop/login1",
             "org.freedesktop.login1.Manager.PrepareForSleep", "boolean:true"]
        )  # fmt: skip
        time.sleep(0.3)
    assert status_of(bed.stage)["since"] == before


@pytest.mark.requirement("R1", "R17")
def test_without_a_bus_and_with_one_that_comes_goes_and_comes_again_it_goes_on() -> None:
    with open_stage() as stage:
        since = status_of(stage)["since"]
        for _ in range(2):
            with run_bus(stage.machine.bus_path, stage.world.client) as (address, _bus):
                with run_mock(address, "logind"):
                    logind = Logind(address)
                    wait_until(lambda: logind.inhibitors() == 1, "the delay lock")  # noqa: B023
                # logind restarts alone: its locks are gone, and taken anew.
                with run_mock(address, "logind"):
                    wait_until(lambda: logind.inhibitors() == 1, "the delay lock")  # noqa: B023
            time.sleep(0.2)
            assert status_of(stage)["since"] == since, "the tunnel has nothing to do with any bus"
        assert stage.page() == plan.SERVER4


@pytest.mark.requirement("R6")
def test_sleep_that_was_announced_while_the_daemon_did_not_listen_is_noticed_when_it_does() -> None:
    with (
        open_stage(start=False) as stage,
        run_bus(stage.machine.bus_path, stage.world.client) as (address, _bus),
        run_mock(address, "logind", "--parameters", '{"PreparingForSleep": true}'),
    ):
        stage.machine.start_daemon()
        stage.machine.wait_for(lambda: status_of(stage)["reason_code"] == "sleeping", "the reason")
        # If it does not sleep after all, it connects.
        stage.machine.wait_for(lambda: status_of(stage)["next_try"] is not None, "the next try")
        Logind(address).announce(sleep=False)
        stage.machine.wait_state("OPEN")


@pytest.mark.requirement("R6", "R17")
def test_without_logind_a_clock_that_jumped_closes_checks_and_opens_anew() -> None:
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
        begin = time.monotonic()
        stage.machine.wait_for(
            lambda: (now := status_of(stage))["state"] == "OPEN" and now["core_pid"] != first["core_pid"], "a new core"
        )
        assert time.monotonic() - begin < 5
        assert "woke" in stage.machine.read_log()
        assert stage.world.client.call(read_lock_state).locked is True
        assert stage.page() == plan.SERVER4
        stage.assert_no_leak(mark)
