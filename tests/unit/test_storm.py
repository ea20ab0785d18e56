# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A storm of network changes: closed meanwhile, with little work, and open again as soon as the network holds."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fake_lists import NoLists
from tests.fake_lock import OWN, FakeLock
from tests.policies import IDENTITY
from tests.skipping import SkippingLoop
from tests.unit.state_machine_watch import UPLINK_A, UPLINK_B, Watch, see

from psiphon_vpn.linux.monitor import NetworkChange
from psiphon_vpn.network.uplink import Uplink
from psiphon_vpn.policy.model import State
from psiphon_vpn.service import events as ev
from psiphon_vpn.service.effects import ApplyPolicy, StartCore
from psiphon_vpn.service.events import Event, Intent, Timer
from psiphon_vpn.service.healer import LONGEST_BLIND_SECONDS, Healer
from psiphon_vpn.service.model import CHANGES_AT_ONCE, SETTLE_SECONDS, Model
from psiphon_vpn.service.reasons import Reason
from psiphon_vpn.service.runner import Runner, Surroundings
from psiphon_vpn.service.timers import JITTER

MINUTE = 60.0
CHANGES = 1000
OPENS_IN = 0.3
"""Seconds that a core and a verification take here."""


@dataclass
class Timed:
    """The state machine on the test's clock: its timers fire, and a core that may connect soon has a tunnel."""

    watch: Watch = field(default_factory=lambda: Watch().to_open())
    now: float = 0.0
    cores: int = 0
    loads: int = 0
    open_for: float = 0.0
    opened_at: list[float] = field(default_factory=list)
    _due: dict[Timer, float] = field(default_factory=dict)
    _tunnel_at: float = math.inf

    def tell(self, event: Event) -> None:
        """Send an event at this moment."""
        armed = dict(self.watch.timers)
        opened = self.watch.opened
        effects = self.watch.tell(event)
        for timer in [timer for timer in self._due if timer not in self.watch.timers]:
            del self._due[timer]
        names = {effect.timer for effect in effects if hasattr(effect, "timer")}
        for timer, seconds in self.watch.timers.items():
            if timer in names or timer not in armed:
                self._due[timer] = self.now + seconds
        started = sum(isinstance(effect, StartCore) for effect in effects)
        self.cores += started
        self.loads += sum(isinstance(effect, ApplyPolicy) for effect in effects)
        if started:
            self._tunnel_at = self.now + OPENS_IN
        if self.watch.running is None:
            self._tunnel_at = math.inf
        self.opened_at += [self.now] if self.watch.opened > opened else []

    def run_until(self, end: float) -> None:
        """Let time pass."""
        while True:
            timer, due = min(self._due.items(), key=lambda item: item[1], default=(None, math.inf))
            at = min(due, self._tunnel_at, end)
            if self.watch.lease:
                self.open_for += at - self.now
            self.now = at
            if at == end:
                return
            if self._tunnel_at <= due:
                self._tunnel_at = math.inf
                self.tell(ev.CoreTunnels(self.watch.model.core, 1))
                self.tell(ev.Verified(self.watch.model.verification))
            elif timer is Timer.RENEWAL:
                self._due[timer] = math.inf  # the lease is renewed
            elif timer is not None:
                del self._due[timer]
                self.tell(ev.TimerFired(timer))


def other(uplink: Uplink) -> Uplink:
    return UPLINK_B if uplink is UPLINK_A else UPLINK_A


@pytest.mark.requirement("R6")
@pytest.mark.parametrize("lost_between", [False, True])
def test_a_thousand_changes_in_a_minute_start_hardly_a_core_open_nothing_and_are_over_at_once(
    lost_between: bool,
) -> None:
    timed, uplink = Timed(), UPLINK_A
    for number in range(CHANGES):
        timed.run_until(number * MINUTE / CHANGES)
        uplink = other(uplink)
        if lost_between:
            timed.tell(ev.UplinkLost())
        timed.tell(see(uplink))
        assert not timed.watch.lease
    storm_over = timed.now
    assert timed.cores <= CHANGES_AT_ONCE
    assert timed.opened_at == []
    assert timed.open_for <= MINUTE / CHANGES, "open before the first change, and not after it"
    assert timed.loads <= CHANGES * 2, "at most one load for each event, and the snapshots decide how many there are"
    assert timed.watch.model.reason is Reason.UNSTABLE
    timed.run_until(storm_over + MINUTE)
    assert timed.opened_at == [pytest.approx(storm_over + SETTLE_SECONDS + OPENS_IN)]


@pytest.mark.requirement("R6")
@given(st.lists(st.floats(0.01, 8.0), min_size=1, max_size=60))
@settings(max_examples=150, deadline=None)
def test_each_change_that_holds_is_followed_by_an_opening_after_the_same_time_and_no_other_starts_a_core(
    gaps: list[float],
) -> None:
    timed, uplink = Timed(), UPLINK_A
    changes = list(itertools.accumulate(gaps))
    for at in changes:
        timed.run_until(at)
        uplink = other(uplink)
        timed.tell(see(uplink))
        assert not timed.watch.lease
        assert timed.watch.model.state in {State.LOCKED, State.CONNECTING}
    timed.run_until(changes[-1] + MINUTE)
    assert timed.watch.lease
    for begin, end in itertools.pairwise([*sorted(changes), math.inf]):
        within = [at for at in timed.opened_at if begin <= at < end]
        assert len(within) <= 1
        if end - begin > SETTLE_SECONDS + OPENS_IN + 0.001:
            assert within, "the network held, but nothing was opened"
            assert within[0] - begin <= SETTLE_SECONDS + OPENS_IN + 0.001
    held = sum(end - begin > SETTLE_SECONDS for begin, end in itertools.pairwise([*sorted(changes), math.inf]))
    assert timed.cores <= CHANGES_AT_ONCE * (1 + int(timed.now / 20.0)) + held


@pytest.mark.requirement("R6")
@pytest.mark.parametrize("changes", [CHANGES, 20 * CHANGES])
def test_however_often_the_network_changes_the_daemon_looks_at_it_ten_times_a_second_at_most(changes: int) -> None:
    looks = 0

    async def look_at_links() -> None:
        nonlocal looks
        looks += 1

    async def scenario() -> None:
        around = Surroundings(identity=IDENTITY, core=None, state_dir=Path("/nowhere"), lists=NoLists())  # type: ignore[arg-type]
        model = Model(intent=Intent.STOPPED, changes=CHANGES_AT_ONCE + 1)
        lock = FakeLock()
        runner = Runner(surroundings=around, lock=lock, model=model, on_change=lambda: None)
        healer = Healer(runner=runner, lock=lock, own=OWN, look_at_links=look_at_links)
        runner.tasks.start("watch", healer.watch_network())
        for _ in range(changes):
            healer.on_network(NetworkChange("link", 2, lost=True, name="eth0"))
            await asyncio.sleep(MINUTE / changes)
        await runner.tasks.close()

    with contextlib.closing(SkippingLoop()) as loop:
        loop.run_until_complete(scenario())
    assert 0 < looks <= MINUTE / LONGEST_BLIND_SECONDS + 1


def test_the_wait_is_short_of_a_second_with_all_that_chance_adds() -> None:
    assert SETTLE_SECONDS * (1 + JITTER) + LONGEST_BLIND_SECONDS < 1.0
