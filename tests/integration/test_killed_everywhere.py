"""The daemon is killed before each of its effects in turn: locked each time, and a fresh daemon opens again."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.stage import Stage, open_stage

from psiphon_vpn.errors import UserError
from psiphon_vpn.lab import addresses as plan
from psiphon_vpn.lab.addresses import LAN_A, LAN_B
from psiphon_vpn.lab.judge import find_leaks, world_evidence
from psiphon_vpn.lab.namespace import LabError
from psiphon_vpn.linux.lockstate import read_lock_state

pytestmark = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="needs root and namespaces")]

LAUNCHER = Path(__file__).with_name("killed_daemon.py")
LAST_EFFECT = 60
"""More than a start, an opening and a move to another provider take; the run ends where nothing is left to kill."""

FIRST_AFTER_OPENING = 18
"""The effects before are those of a start, which the first of the tests goes through."""


@pytest.fixture
def stage() -> Iterator[Stage]:
    with open_stage(start=False) as made:
        yield made


@pytest.mark.requirement("R2", "R3", "R6", "B2")
def test_killed_before_any_effect_the_machine_is_locked_and_a_fresh_daemon_opens(stage: Stage) -> None:
    """From the start to open, and on by a move to the other provider and back."""
    machine, world = stage.machine, stage.world
    plain = list(machine.program)
    here, there = LAN_A, LAN_B
    mark = world.mark()
    killed: list[str] = []
    for number in range(1, LAST_EFFECT):
        machine.program = [str(LAUNCHER), str(number)]
        before = len(machine.read_log())
        try:
            machine.start_daemon()
            machine.wait_state("OPEN", seconds=6)
            machine.wait_for(machine.lease_remains, "the lease", seconds=3)
            world.disconnect_uplink(here)
            world.connect_uplink(there)
            here, there = there, here
            machine.wait_state("OPEN", seconds=6)
            machine.wait_for(machine.lease_remains, "the lease", seconds=3)
        except LabError:
            pass
        found = re.findall(r"KILLED BEFORE (.+)", machine.read_log()[before:])
        machine.kill_daemon()
        lock = world.client.call(read_lock_state)
        assert lock.locked is True, (found, lock)
        if not found:
            break
        killed += found
    else:
        pytest.fail("the daemon never got through")
    names = {name.split(" in ")[0] for name in killed}
    assert {"ApplyPolicy", "StartCore", "Verify", "OpenTunnel", "CloseLease", "StopCore"} <= names
    machine.program = plain
    machine.start_daemon()
    machine.wait_state("OPEN")
    assert stage.page() == plan.SERVER4
    stage.assert_no_leak(mark)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("half", [0, 1], ids=["every other effect", "the others"])
@pytest.mark.requirement("R2", "R3", "R6", "B2")
def test_killed_before_any_effect_of_a_wake_a_loss_or_a_stop_the_machine_is_locked(stage: Stage, half: int) -> None:
    """A sleep that the clock tells of, a core that is killed, a carrier that goes and comes, the user's stop."""
    machine, world = stage.machine, stage.world
    slept = world.directory / "slept"

    def sleep_until(seconds: int) -> None:
        beside = slept.with_name("slept.new")
        beside.write_text(f"{seconds}")
        beside.chmod(0o644)
        beside.replace(slept)

    def live_through() -> None:
        machine.start_daemon()
        machine.wait_state("OPEN", seconds=6)
        machine.wait_for(machine.lease_remains, "the lease", seconds=3)
        core = machine.wait_state("OPEN", seconds=6)["core_pid"]
        sleep_until(200)
        machine.wait_for(lambda: (machine.read_status() or {}).get("core_pid") not in {None, core}, "waking", seconds=6)
        core = machine.wait_state("OPEN", seconds=6)["core_pid"]
        machine.wait_for(machine.lease_remains, "the lease", seconds=3)
        os.kill(core, 9)
        machine.wait_for(lambda: (machine.read_status() or {}).get("core_pid") not in {None, core}, "a core", seconds=6)
        machine.wait_state("OPEN", seconds=6)
        machine.wait_for(machine.lease_remains, "the lease", seconds=3)
        world.set_carrier(LAN_A, up=False)
        machine.wait_state("LOCKED", seconds=6)
        machine.command("stop")

    mark = world.mark()
    killed: list[str] = []
    for number in range(FIRST_AFTER_OPENING + half, LAST_EFFECT, 2):
        sleep_until(100)
        world.disconnect_uplink(LAN_A)
        world.connect_uplink(LAN_A)
        (machine.state_dir / "intent").unlink(missing_ok=True)
        machine.program = [str(LAUNCHER), f"{number}:{slept}"]
        before = len(machine.read_log())
        with contextlib.suppress(LabError, UserError):
            live_through()
        found = re.findall(r"KILLED BEFORE (.+)", machine.read_log()[before:])
        machine.kill_daemon()
        assert world.client.call(read_lock_state).locked is True, found
        if not found:
            break
        killed += found
    else:
        pytest.fail("the daemon never got through")
    # StoreIntent is the last but one of all: whichever half this is, it got as far as the user's stop.
    assert {name.split(" in ")[1] for name in killed} >= {"CONNECTING", "VERIFYING", "OPEN", "LOCKED"}
    leaks = find_leaks(world.frames_since(mark), world_evidence(stage.server.read_flows()))
    # A core that is ended while it shakes hands leaves frames of a connection that its server has no record of.
    assert [leak.text for leak in leaks if f" > {plan.SERVER4}:" not in leak.text] == []
