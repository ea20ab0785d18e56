# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon is killed before each effect of each path in turn: locked each time, and a fresh daemon opens again."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from tests.integration.testbed import Testbed, open_testbed
from tests.lock_reading import read_lock

from psiphon_lab import addresses as plan
from psiphon_lab.addresses import LAN_A, LAN_B
from psiphon_lab.judge import find_leaks, world_evidence
from psiphon_lab.namespace import LabError
from psiphon_vpn.errors import UserError

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root and namespaces"),
]

LAUNCHER = Path(__file__).with_name("killed_daemon.py")
MOST_EFFECTS = 40
"""More than any path takes; each ends where nothing is left to kill."""
SECONDS = 60.0


class Killer:
    """A testbed whose daemon is killed at a given effect, and started again when it is needed."""

    def __init__(self, testbed: Testbed) -> None:
        self.testbed = testbed
        self.machine, self.world = testbed.machine, testbed.world
        self.home = LAN_A
        self._directory = testbed.world.directory / "orders"
        self._directory.mkdir()
        self._directory.chmod(0o755)
        self._orders = 0
        self._read_from = self._started_at = 0
        self._slept = 0
        self.oversleep()
        self.machine.program = [str(LAUNCHER), str(self._directory)]

    def _write(self, name: str, text: str) -> None:
        beside = self._directory / f"{name}.new"
        beside.write_text(text)
        beside.chmod(0o644)
        beside.replace(self._directory / name)

    def spare(self, effects: Iterable[str] = ("all",)) -> None:
        """Let the daemon survive these effects from now on, and no others."""
        self._orders += 1
        self._read_from = self._measure_log()
        self._write("kill", "\n".join([str(self._orders), *effects]))

    def oversleep(self) -> None:
        """Make the clocks show a sleep."""
        self._slept += 100
        self._write("slept", str(self._slept))

    def alive(self) -> bool:
        """Whether the daemon runs."""
        try:
            return bool(self.machine.daemon_pid)
        except LabError:
            return False

    def start(self) -> None:
        """Start the daemon from whatever state is left, with the intent to connect."""
        self.machine.kill_daemon()
        (self.machine.state_dir / "intent").unlink(missing_ok=True)
        self.world.set_carrier(self.home, up=True)
        self._started_at = self._measure_log()
        self.machine.start_daemon()

    def _measure_log(self) -> int:
        return self.machine.log_path.stat().st_size if self.machine.log_path.exists() else 0

    def read_new(self, *, since_start: bool = False) -> str:
        """What was logged since the last call of `spare`, or since the daemon's start."""
        with self.machine.log_path.open("rb") as log:
            log.seek(self._started_at if since_start else self._read_from)
            return log.read().decode(errors="replace")

    def wait_logged(self, text: str, *, since_start: bool = False) -> None:
        """Wait until the text is logged. This does not ask for the status, which reads the kernel's rules each time."""
        self.machine.wait_for(lambda: text in self.read_new(since_start=since_start), text, seconds=SECONDS)

    def wait_open(self) -> None:
        """Wait until the service has opened since then, and the kernel holds the lease."""
        self.wait_logged(" -> OPEN: ")
        self.machine.wait_for(self.machine.lease_remains, "the lease", seconds=SECONDS)

    def try_each(self, go: Callable[[], None], *, from_start: bool = False) -> list[str]:
        """Walk a path again and again. Each time the daemon is killed before the first effect at which it was not yet,
        until none is left. Returns all of them. Events of the network may come together in several ways, so they are
        not counted.

        Args:
            go: walks the path to its end; raises LabError if the daemon ends on the way.
            from_start: the path begins with the daemon's start.
        """
        killed: list[str] = []
        while len(killed) < MOST_EFFECTS:
            if not from_start and not self.alive():
                self.spare()
                self.start()
                self.wait_open()
            self.spare(killed)
            arrived = False
            with contextlib.suppress(LabError, UserError):
                go()
                arrived = True
            log = self.read_new()
            found = re.findall(r"KILLED BEFORE (.+)", log)
            assert read_lock(self.world.client).locked is True, found
            if not found:
                assert arrived, f"not killed, but not at the end either: {log[-3000:]}"
                return killed
            assert not self.alive()
            killed += found
        pytest.fail(f"the daemon never got through: {killed}")


@pytest.fixture(scope="module")
def _killer() -> Iterator[Killer]:
    with open_testbed(start=False) as testbed:
        yield Killer(testbed)


@pytest.fixture
def killer(_killer: Killer) -> Iterator[Killer]:
    """The killer; at the end nothing has leaked, and everything works."""
    mark = _killer.world.mark()
    yield _killer
    _killer.spare()
    _killer.start()
    _killer.wait_open()
    assert _killer.testbed.page() == plan.SERVER4
    leaks = find_leaks(_killer.world.frames_since(mark), world_evidence(_killer.testbed.server.read_flows()))
    # A core that ends during its handshake leaves frames of a connection that its server did not record.
    assert [leak.text for leak in leaks if f" > {plan.SERVER4}:" not in leak.text] == []


def names_in(killed: list[str]) -> set[str]:
    return {one.split(" in ")[0] for one in killed}


CONNECTING = {"CancelTimers", "ApplyPolicy", "StartCore", "ArmTimer", "Verify", "OpenTunnel"}


@pytest.mark.requirement("R2", "R3", "R6", "B2")
def test_killed_before_any_effect_of_a_start_the_machine_is_locked_and_a_fresh_daemon_opens(killer: Killer) -> None:
    def go() -> None:
        killer.start()
        killer.wait_open()

    assert names_in(killer.try_each(go, from_start=True)) >= CONNECTING


@pytest.mark.requirement("R2", "R3", "R6", "B2")
def test_killed_before_any_effect_of_a_move_the_machine_is_locked_and_a_fresh_daemon_opens(killer: Killer) -> None:
    def go() -> None:
        killer.world.disconnect_uplink(killer.home)
        killer.home = LAN_B if killer.home is LAN_A else LAN_A
        killer.world.connect_uplink(killer.home)
        killer.wait_open()

    assert names_in(killer.try_each(go)) >= {*CONNECTING, "CloseLease", "StopCore"}


@pytest.mark.requirement("R2", "R3", "R6", "B2")
def test_killed_before_any_effect_of_a_wake_that_the_clock_tells_of_the_machine_is_locked(killer: Killer) -> None:
    def go() -> None:
        killer.oversleep()
        killer.wait_open()

    assert names_in(killer.try_each(go)) >= {*CONNECTING, "CloseLease", "StopCore"}


@pytest.mark.requirement("R2", "R3", "R6", "R17", "B2")
def test_killed_before_any_effect_of_a_sleep_that_is_announced_the_machine_is_locked(killer: Killer) -> None:
    """Announce a sleep, wait for the lock, then wake up. A daemon that starts after a kill in the sleep is awake."""

    def go() -> None:
        killer.machine.command("sleep-begins")
        killer.wait_logged(": sleeping")
        assert not killer.machine.lease_remains()
        killer.machine.command("sleep-ended")
        killer.wait_open()

    killed = killer.try_each(go)
    assert names_in(killed) >= {*CONNECTING, "CloseLease", "StopCore"}
    assert {one.split()[2] for one in killed} >= {"LOCKED", "CONNECTING", "VERIFYING", "OPEN"}


@pytest.mark.requirement("R2", "R3", "R6", "B2")
def test_killed_before_any_effect_of_a_lost_core_the_machine_is_locked(killer: Killer) -> None:
    def go() -> None:
        core = (killer.machine.read_status() or {})["core_pid"]
        os.kill(core, 9)
        killer.wait_open()

    assert names_in(killer.try_each(go)) >= {*CONNECTING, "CloseLease"}


@pytest.mark.requirement("R2", "R3", "R6", "B2")
def test_killed_before_any_effect_of_a_lost_carrier_the_machine_is_locked(killer: Killer) -> None:
    def go() -> None:
        killer.world.set_carrier(killer.home, up=False)
        killer.wait_logged(": no_uplink")
        killer.machine.wait_for(
            lambda: (killer.machine.read_status() or {}).get("core_pid") is None, "the core's end", seconds=SECONDS
        )

    assert names_in(killer.try_each(go)) >= {"CloseLease", "CancelTimers", "ApplyPolicy", "StopCore"}


@pytest.mark.requirement("R2", "R3", "R6", "B2")
def test_killed_before_any_effect_of_the_users_stop_the_machine_is_locked(killer: Killer) -> None:
    def go() -> None:
        killer.machine.command("stop")

    assert names_in(killer.try_each(go)) >= {"CloseLease", "StoreIntent", "CancelTimers", "ApplyPolicy", "StopCore"}
