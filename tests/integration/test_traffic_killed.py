# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon is killed before and after each change of traffic control: locked, no card cut off; a new one opens."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.integration.testbed import Testbed, open_testbed
from tests.lock_reading import read_lock

from psiphon_lab import addresses as plan
from psiphon_lab.addresses import LAN_A
from psiphon_lab.namespace import LabError
from psiphon_vpn.linux.lockstate import find_cut_off
from psiphon_vpn.linux.traffic import remove_filters

pytestmark = [
    pytest.mark.lab,
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root and namespaces"),
]

LAUNCHER = Path(__file__).with_name("filter_killed_daemon.py")
SECONDS = 60.0
MOST_CHANGES = 12
"""More than any path takes; each ends where nothing is left to kill."""
ONCE = "once0"


class Killer:
    """A testbed whose daemon is killed before or after a change of traffic control."""

    def __init__(self, testbed: Testbed) -> None:
        self.testbed, self.machine, self.client = testbed, testbed.machine, testbed.world.client
        self._orders = testbed.world.directory / "orders"
        self._orders.mkdir()
        self._orders.chmod(0o755)
        self._read_from = 0
        self.machine.program = [str(LAUNCHER), str(self._orders)]

    def start(self, number: int = 0, when: str = "before") -> bool:
        """Start the daemon, to be killed before or after a change; returns whether it survived until it opened."""
        self.machine.kill_daemon()
        order = self._orders / "kill"
        order.write_text(f"{number} {when}\n")
        order.chmod(0o644)
        log = self.machine.log_path
        self._read_from = log.stat().st_size if log.exists() else 0
        with contextlib.suppress(LabError):
            self.machine.start_daemon()
            self.machine.wait_for(lambda: self.was_killed() or self._is_whole(), "an opening", seconds=SECONDS)
        return not self.was_killed()

    def _is_whole(self) -> bool:
        return self.machine.lease_remains() and self.has_filter(LAN_A.interface)

    def was_killed(self) -> bool:
        """Whether the daemon was killed since its start."""
        with self.machine.log_path.open("rb") as log:
            log.seek(self._read_from)
            return b"KILLED" in log.read()

    def has_filter(self, name: str) -> bool:
        """Whether our filter is on a card."""
        shown = self.client.run(["tc", "filter", "show", "dev", name, "egress"], check=False)
        return "handle 0x5053" in shown.stdout

    def assert_safe(self) -> None:
        """Require that the machine is locked, and that no filter drops everything because no guard sets its mark."""
        assert read_lock(self.client).locked is True
        assert self.client.call(lambda: asyncio.run(find_cut_off())) == ()

    def try_each(self, prepare: Callable[[], None]) -> int:
        """Start from the same state each time, killed at the first change, the second, and so on; returns how many."""
        for number in range(1, MOST_CHANGES):
            for when in ("before", "after"):
                prepare()
                if self.start(number, when):
                    assert self._is_whole()
                    return number - 1
                self.assert_safe()
                assert self.start(), "a fresh daemon opens"
                assert self.testbed.page() == plan.SERVER4
                self.assert_safe()
        raise AssertionError("it was killed every time")


@pytest.fixture(scope="module")
def killer() -> Iterator[Killer]:
    with open_testbed(start=False) as testbed:
        yield Killer(testbed)


@pytest.mark.requirement("R2", "R3", "B4")
def test_killed_around_any_change_of_a_first_start_no_card_is_cut_off(killer: Killer) -> None:
    def prepare() -> None:
        killer.machine.kill_daemon()
        killer.client.call(remove_filters)

    assert killer.try_each(prepare) >= 2


@pytest.mark.requirement("R2", "R3", "B4")
def test_killed_around_any_change_when_a_guard_goes_no_card_is_cut_off(killer: Killer) -> None:
    """A bridge that led out under the previous daemon, and no longer does."""

    def prepare() -> None:
        killer.client.run(["ip", "link", "del", ONCE], check=False)
        killer.client.run(["ip", "link", "add", ONCE, "type", "bridge"])
        killer.client.run(["ip", "link", "set", ONCE, "up"])
        killer.client.run(["ip", "route", "add", "default", "dev", ONCE, "metric", "9999"])
        assert killer.start()
        killer.machine.wait_for(lambda: killer.has_filter(ONCE), "the bridge's filter", seconds=SECONDS)
        killer.client.run(["ip", "route", "del", "default", "dev", ONCE])

    assert killer.try_each(prepare) >= 2
    assert not killer.has_filter(ONCE)
