# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A tunnel that carries nothing is given up soon, and a live one that is slow or lossy is not; on the test's clock."""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fake_lock import FakeLock
from tests.policies import make_policy
from tests.skipping import run_skipping

from psiphon_vpn.linux.lock import Cover
from psiphon_vpn.policy.model import State
from psiphon_vpn.service import events as ev
from psiphon_vpn.service import keeper
from psiphon_vpn.service.events import Event
from psiphon_vpn.service.keeper import QUESTION_PAUSE_SECONDS, LeaseKeeper
from psiphon_vpn.service.liveness import Traffic
from psiphon_vpn.service.patience import (
    LONGEST_SECONDS,
    LOST_SECONDS,
    SLOW_SECONDS,
    UNCARRIED_SECONDS,
    URGENT_SECONDS,
    USUAL_SECONDS,
    Patience,
    Silence,
)

HOUR = 3600.0
AIM = 5.0
"""From a stroke to closed, seconds. The next page takes the core one or two more where one server is left of two."""


def now() -> float:
    """Seconds of the test's clock."""
    return asyncio.get_running_loop().time()


@dataclass
class Line:
    """A tunnel as the keeper sees it.

    Attributes:
        answers_after: seconds that the next answer takes; infinite for none.
        sends_every: seconds between two packets of applications; infinite for none.
        comes_every: seconds between two packets that come out, whatever was asked.
        heard_ago: seconds since the kernel last heard of the far end.
        dies_at: from then on nothing comes any more.
    """

    answers_after: Callable[[], float] = lambda: 0.1
    sends_every: float = float("inf")
    comes_every: float = float("inf")
    heard_ago: Callable[[], float | None] = lambda: None
    dies_at: float = float("inf")
    first: float = 0.1
    channel_lost_at: float = float("inf")
    asked: int = 0
    answered: int = 0
    began: float = field(default=0.0)

    async def ask(self, seconds: float) -> bool:
        """Stand in for the question."""
        self.asked += 1
        after = self.answers_after()
        lives = now() + after < self.began + self.dies_at
        if lives and after < seconds:
            await asyncio.sleep(after)
            self.answered += 1
            return True
        await asyncio.sleep(seconds)
        return False

    async def hear(self) -> float | None:
        """Stand in for the kernel's list."""
        ago = self.heard_ago()
        dead_for = now() - self.began - self.dies_at
        return ago if ago is None or dead_for <= 0 else max(ago, dead_for)

    def read_traffic(self) -> Traffic:
        """Stand in for the counters."""
        lived = min(now() - self.began, self.dies_at)
        sent = int((now() - self.began) / self.sends_every) + self.asked
        return Traffic(sent=sent, received=int(lived / self.comes_every) + self.answered)


def live(line: Line, seconds: float = HOUR) -> tuple[list[Event], float]:
    """Keep a lease over such a line for some time; returns the posted events with their times."""
    reported: list[Event] = []

    async def scenario() -> float:
        lock = FakeLock()
        lock.policy = make_policy(State.OPEN)
        service = LeaseKeeper(
            lock=lock,
            proof=await lock.renew(await lock.read_back(), Cover()),
            cover=Cover(),
            has_ipv6=False,
            post=reported.append,
            on_change=lambda: None,
            has_slept=lambda: False,
            on_renewal=lambda: None,
            ipv6_probe=(),
            patience=Patience(line.first),
            hear=line.hear,
        )
        line.began = now()
        if line.channel_lost_at < seconds:
            asyncio.get_running_loop().call_later(line.channel_lost_at, functools.partial(service.doubt, lost=True))
        try:
            async with asyncio.timeout(seconds):
                await service.run()
        except TimeoutError:
            assert lock.leased
        else:
            assert not lock.leased, "told and not closed"
        return now() - line.began

    with (
        mock.patch.object(keeper, "ask_resolver", line.ask),
        mock.patch.object(keeper, "read_traffic", line.read_traffic),
    ):
        return reported, run_skipping(scenario())


# -- a tunnel that is dead --------------------------------------------------------------------------------------------


@given(phase=st.floats(10.0, 14.0), every=st.floats(0.02, 0.4))
@settings(max_examples=40, deadline=None)
def test_whenever_the_server_is_blocked_an_application_waits_for_less_than_the_aim(phase: float, every: float) -> None:
    reported, ended = live(Line(sends_every=every, comes_every=every, dies_at=phase))
    assert [type(event) for event in reported] == [ev.TunnelSilent]
    assert ended - phase <= AIM


def test_a_name_that_is_asked_for_once_is_enough_to_notice() -> None:
    """Two packets after a long silence and nothing more, as from a resolver."""
    line = Line(dies_at=0.0)

    def read() -> Traffic:
        return Traffic(sent=line.asked + 2 * (now() - line.began > 5.0), received=7)

    with mock.patch.object(line, "read_traffic", read):
        reported, ended = live(line)
    assert [type(event) for event in reported] == [ev.TunnelSilent]
    assert ended - 5.0 <= AIM + 2.0, "while nothing is sent, only renewals look"


def test_a_tunnel_that_nobody_uses_is_given_as_long_as_ever() -> None:
    reported, ended = live(Line(dies_at=0.0))
    assert [type(event) for event in reported] == [ev.TunnelSilent]
    assert ended >= 15.0 + USUAL_SECONDS


@given(lost=st.floats(1.0, 40.0), used=st.booleans())
@settings(max_examples=40, deadline=None)
def test_a_core_that_says_itself_that_no_packets_pass_is_believed_after_a_second(lost: float, used: bool) -> None:
    """Even if the kernel still hears from the far end, and while another question is under way."""
    every = 0.3 if used else float("inf")
    line = Line(sends_every=every, comes_every=every, heard_ago=lambda: 0.1, dies_at=lost, channel_lost_at=lost)
    reported, ended = live(line)
    assert [type(event) for event in reported] == [ev.TunnelSilent]
    assert ended - lost <= LOST_SECONDS + 2 * QUESTION_PAUSE_SECONDS


def test_what_a_core_says_of_a_tunnel_that_answers_is_soon_forgotten() -> None:
    line = Line(answers_after=lambda: 0.8, first=0.8, channel_lost_at=20.0)
    reported, _ = live(line)
    assert reported == []
    assert line.answered > 100


# -- a tunnel that lives ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("used", [False, True])
def test_a_slow_line_is_no_dead_one(seed: int, used: bool) -> None:
    """Answers take two seconds, and sometimes three."""
    chance = random.Random(seed)
    line = Line(
        answers_after=lambda: 2.0 * chance.uniform(0.9, 1.5), first=2.0, sends_every=0.5 if used else float("inf")
    )
    reported, _ = live(line)
    assert reported == []
    assert line.answered > 100


@pytest.mark.parametrize("seed", range(4))
def test_a_lossy_line_is_no_dead_one_while_its_far_end_is_heard(seed: int) -> None:
    """One answer in five comes only after TCP's retransmissions; the kernel hears from the far end meanwhile."""
    chance = random.Random(seed)
    line = Line(
        answers_after=lambda: chance.uniform(3.0, UNCARRIED_SECONDS - 1) if chance.random() < 0.2 else 0.1,
        heard_ago=lambda: chance.uniform(0.0, URGENT_SECONDS - 0.5),
        sends_every=0.5,
    )
    reported, _ = live(line)
    assert reported == []
    assert line.answered > 100


def test_the_same_without_a_word_of_the_far_end_is_given_up() -> None:
    """The positive control: such answers alone do not keep a tunnel."""
    line = Line(answers_after=lambda: 9.0, sends_every=0.5)
    reported, _ = live(line)
    assert [type(event) for event in reported] == [ev.TunnelSilent]


def test_a_throttled_line_is_no_dead_one_while_packets_come_out_of_it() -> None:
    """The answer waits behind data that a server has already sent: half a megabyte at 20 kB/s."""
    line = Line(answers_after=lambda: 26.0, comes_every=1.9, sends_every=3.9)
    reported, _ = live(line)
    assert reported == []
    assert line.answered > 50


def test_a_tunnel_whose_far_end_is_heard_and_that_carries_nothing_is_given_up() -> None:
    line = Line(answers_after=lambda: float("inf"), heard_ago=lambda: 0.1)
    reported, ended = live(line)
    assert [type(event) for event in reported] == [ev.TunnelSilent]
    assert ended <= 15.0 + 2.0 + UNCARRIED_SECONDS + 0.1


def test_a_resolver_that_never_answers_is_given_up_though_packets_come() -> None:
    line = Line(answers_after=lambda: float("inf"), comes_every=0.5)
    reported, ended = live(line)
    assert [type(event) for event in reported] == [ev.TunnelSilent]
    assert ended <= 15.0 + 2.0 + LONGEST_SECONDS + 0.1


# -- the numbers ------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0.0, 60.0), max_size=50), st.floats(0.0, 60.0))
def test_patience_stays_within_its_bounds_whatever_it_learns(answers: list[float], first: float) -> None:
    patience = Patience(first)
    for seconds in answers:
        patience.learn(seconds)
    assert URGENT_SECONDS <= patience.find(urgent=True) <= SLOW_SECONDS
    assert USUAL_SECONDS <= patience.find(urgent=False) <= SLOW_SECONDS


def test_patience_grows_with_slow_answers_and_shrinks_again() -> None:
    patience = Patience(0.1)
    assert patience.find(urgent=True) == URGENT_SECONDS
    for _ in range(5):
        patience.learn(2.0)
    assert patience.find(urgent=True) > 4.0
    for _ in range(60):
        patience.learn(0.1)
    assert patience.find(urgent=True) == URGENT_SECONDS


@given(st.lists(st.tuples(st.booleans(), st.floats(0.0, 70.0)), max_size=30), st.floats(2.5, 8.0))
def test_no_sign_of_life_keeps_an_unanswered_question_for_ever(
    signs: list[tuple[bool, float]], patience: float
) -> None:
    silence = Silence(100.0, patience)
    before = silence.ends_at
    assert before == 100.0 + patience
    for carried, at in sorted(signs, key=lambda sign: sign[1]):
        (silence.carry if carried else silence.hear)(100.0 + at)
        assert before <= silence.ends_at <= 100.0 + LONGEST_SECONDS
        before = silence.ends_at


def test_what_was_heard_before_the_question_says_nothing_about_it() -> None:
    silence = Silence(100.0, 3.0)
    silence.hear(95.0)
    assert silence.ends_at == 103.0
