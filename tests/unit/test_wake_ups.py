# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What wakes an open and idle daemon, counted with a clock that skips waiting: renewals, and the tunnel's answers."""

from __future__ import annotations

import asyncio
import contextlib
import selectors
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from tests.fake_lists import FakeLists
from tests.fake_lock import OWN, FakeLock
from tests.policies import IDENTITY
from tests.skipping import SkippingLoop
from tests.unit.faulty_daemon import FakeCore
from tests.unit.state_machine_watch import UPLINK_A, see

from psiphon_lab import counted_daemon
from psiphon_lab.service_adapter.daemon import WATCHDOG_SECONDS
from psiphon_vpn.linux.lock import Cover, Proof
from psiphon_vpn.policy import names
from psiphon_vpn.policy.model import State
from psiphon_vpn.service import core_supervision, hint_keeper, keeper, opening, runner, watchdog
from psiphon_vpn.service.healer import Healer
from psiphon_vpn.service.model import Model
from psiphon_vpn.service.parts import Part
from psiphon_vpn.service.runner import Runner, Surroundings
from psiphon_vpn.service.watchdog import Watchdog
from psiphon_vpn.system import units
from psiphon_vpn.system.layout import SERVICE_UNIT

SETTLED_SECONDS, IDLE_SECONDS = 100, 600
"""From its start until nothing of an opening is left to do; and for how long the daemon is watched then."""


class CountedLock(FakeLock):
    """Counts the renewals."""

    renewals = 0

    async def renew(self, proof: Proof, cover: Cover) -> Proof:
        self.renewals += 1
        return await super().renew(proof, cover)


class Idle:
    """What happened meanwhile: waits of the event loop, renewals, questions through the tunnel, notifications."""

    def __init__(self) -> None:
        self.waits = self.renewals = self.questions = self.told = 0


@contextlib.contextmanager
def fakes(idle: Idle) -> Iterator[None]:
    """Fakes at the daemon's edge. An answer takes a moment, so the daemon waits once for each."""

    async def answer(*_arguments: object, **_more: object) -> bool:
        idle.questions += 1
        await asyncio.sleep(0.05)
        return True

    def told(*_assignments: str) -> None:
        idle.told += 1

    async def no_answer(*_arguments: object, **_more: object) -> None:
        await asyncio.sleep(1)

    FakeCore.made = 2  # the next one has its tunnel soon
    with (
        mock.patch.object(core_supervision, "CoreProcess", FakeCore),
        mock.patch.object(core_supervision, "is_free", return_value=True),
        mock.patch.object(runner, "Sealing", return_value=contextlib.nullcontext(object())),
        mock.patch.object(opening, "ask_resolver", answer),
        mock.patch.object(keeper, "ask_resolver", answer),
        mock.patch.object(keeper, "ask", answer),
        mock.patch.object(hint_keeper, "exchange", no_answer),
        mock.patch.object(keeper, "read_traffic", return_value=None),
        mock.patch.object(watchdog, "notify", told),
    ):
        yield


def watch_idle(directory: Path, *, allowed: float) -> Idle:
    """Open, wait until nothing of the opening is left, and count.

    allowed: seconds that the service manager allows between two notifications.
    """
    idle = Idle()

    async def scenario() -> None:
        loop: Any = asyncio.get_running_loop()
        lock = CountedLock()
        around = Surroundings(identity=IDENTITY, core=None, state_dir=directory, lists=FakeLists())  # type: ignore[arg-type]
        feeder = Watchdog(allowed)
        service = Runner(
            surroundings=around, lock=lock, model=Model(), on_change=lambda: None, on_renewal=feeder.renewed
        )

        async def look_at_links() -> None:
            service.post(see(UPLINK_A))

        healer = Healer(runner=service, lock=lock, own=OWN, look_at_links=look_at_links)
        service.tasks.start(Part.EVENTS, service.run())
        for part, watch in (
            (Part.LINKS, healer.watch_network),
            (Part.ROUTES, healer.watch_routes),
            (Part.RULES, healer.watch_rules),
            (Part.TRAFFIC, healer.watch_filters),
            (Part.GUARDS, healer.watch_guards),
            (Part.WATCHDOG, feeder.run),
        ):
            service.tasks.keep(part, watch)
        healer.on_network(None)
        await asyncio.sleep(SETTLED_SECONDS)
        assert service.model.state is State.OPEN
        before = loop.waits, lock.renewals, idle.questions, idle.told
        await asyncio.sleep(IDLE_SECONDS)
        assert service.model.state is State.OPEN
        now = loop.waits, lock.renewals, idle.questions, idle.told
        idle.waits, idle.renewals, idle.questions, idle.told = (new - old for new, old in zip(now, before, strict=True))
        await service.stop()
        await service.tasks.close()

    with fakes(idle), asyncio.Runner(loop_factory=SkippingLoop) as loops:
        loops.run(scenario())
    return idle


def test_nothing_but_renewals_and_answers_wakes_an_open_and_idle_daemon(tmp_path: Path) -> None:
    idle = watch_idle(tmp_path, allowed=WATCHDOG_SECONDS)
    assert idle.renewals >= IDLE_SECONDS / names.LEASE_RENEW_SECONDS - 2
    assert idle.questions >= IDLE_SECONDS / 17 - 1
    # The test's own end of waiting is one more.
    assert idle.waits <= idle.renewals + idle.questions + 1
    assert idle.told >= IDLE_SECONDS / (WATCHDOG_SECONDS / 2), "the service manager would kill it"


def test_a_watchdog_that_no_renewal_feeds_wakes_for_itself() -> None:
    """The positive control of the counting, and of the time when nothing is open."""
    idle = Idle()

    async def scenario() -> tuple[int, int]:
        loop: Any = asyncio.get_running_loop()
        feeder = asyncio.create_task(Watchdog(WATCHDOG_SECONDS).run())
        await asyncio.sleep(WATCHDOG_SECONDS * 10 + 1)
        feeder.cancel()
        return loop.waits, idle.told

    with fakes(idle), asyncio.Runner(loop_factory=SkippingLoop) as loops:
        waits, told = loops.run(scenario())
    assert (waits, told) == (21, 21)


def test_no_notification_where_the_service_manager_expects_none(tmp_path: Path) -> None:
    assert watch_idle(tmp_path, allowed=0).told == 0


def test_the_laboratory_expects_the_notification_as_often_as_the_unit() -> None:
    assert f"\nWatchdogSec={WATCHDOG_SECONDS}\n" in units.render_units()[SERVICE_UNIT]


def test_a_wait_is_counted_and_an_event_that_was_pending_is_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The count of the laboratory's daemon."""
    file = tmp_path / "count"

    def run() -> int:
        async def scenario() -> None:
            await asyncio.sleep(0)
            await asyncio.sleep(0.001)
            await asyncio.sleep(0.001)

        asyncio.run(scenario())
        return 0

    monkeypatch.setattr(selectors.EpollSelector, "select", selectors.EpollSelector.select)  # put back after the test
    monkeypatch.setattr(counted_daemon, "run_daemon", run)
    monkeypatch.setattr("sys.argv", ["counted_daemon", str(file)])
    assert counted_daemon.main() == 0
    assert int(file.read_text(encoding="ascii")) == 2
