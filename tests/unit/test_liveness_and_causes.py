# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""When the service tests the tunnel, why it does not connect, and what it reports of its timers."""

from __future__ import annotations

import asyncio
import errno
import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.skipping import run_skipping

from psiphon_vpn.core.process import CoreError
from psiphon_vpn.linux import clocks
from psiphon_vpn.linux.clocks import JumpTimer, SleepClock, read_slept
from psiphon_vpn.network_managers.systemd_networkd import find_portal
from psiphon_vpn.service.causes import EARLIEST, explain_failed_start
from psiphon_vpn.service.events import Event, Timer, TimerFired
from psiphon_vpn.service.liveness import LIVENESS_SECONDS, Doubt, Liveness, Traffic, read_traffic
from psiphon_vpn.service.reasons import Reason, explain
from psiphon_vpn.service.timers import JITTER, Timers
from psiphon_vpn.tasks import Supervisor

NOW = EARLIEST + timedelta(days=200)


def test_a_tunnel_without_traffic_is_asked_now_and_then_and_not_looked_at_more_often() -> None:
    liveness = Liveness(0.0)
    asked = []
    for second in range(0, 61, 2):
        doubt = liveness.look(Traffic(5, 5), second)
        assert not liveness.busy
        if doubt is not Doubt.NONE:
            assert doubt is Doubt.DUE
            asked.append(second)
            liveness.asked(second)
    assert asked == [16, 32, 48]
    assert LIVENESS_SECONDS == 15


def test_traffic_that_is_answered_asks_nothing_and_traffic_that_is_not_asks_soon() -> None:
    liveness = Liveness(0.0)
    for second in range(14):
        assert liveness.look(Traffic(second * 10, second * 7), second) is Doubt.NONE
        assert liveness.busy is (second > 0)
    liveness = Liveness(0.0)
    found = [liveness.look(Traffic(10 * second, 7), second) for second in (0, 2, 3)]
    assert found == [Doubt.NONE, Doubt.NONE, Doubt.UNANSWERED]
    liveness.asked(5)
    assert liveness.look(Traffic(40, 7), 6) is Doubt.NONE, "counted anew"


def test_what_was_sent_once_is_still_unanswered_at_the_next_look() -> None:
    """A resolver sends two packets, and then none for some seconds."""
    liveness = Liveness(0.0)
    found = [liveness.look(Traffic(2 * (second > 0), 7), second) for second in (0, 2, 3)]
    assert found == [Doubt.NONE, Doubt.NONE, Doubt.UNANSWERED]


def test_a_single_packet_without_an_answer_is_no_reason_to_ask_nor_to_look_for_ever() -> None:
    liveness = Liveness(0.0)
    busy = []
    for second in range(14):
        assert liveness.look(Traffic(1 + (second > 2), 7), second) is Doubt.NONE
        busy += [second] if liveness.busy else []
    assert busy == [3]


def test_the_counters_are_those_of_our_tun(tmp_path: Path) -> None:
    file = tmp_path / "dev"
    file.write_text(
        "Inter-|   Receive  | Transmit\n face |bytes packets\n"
        "    lo: 1 2 0 0 0 0 0 0 3 4 0 0 0 0 0 0\nPsiphonTUN: 100 11 0 0 0 0 0 0 200 22 0 0 0 0 0 0\n"
    )
    assert read_traffic(file, lambda _name: 0) == Traffic(sent=22, received=11)
    # Packets that wait for a core that does not read are only in the queue's count.
    assert read_traffic(file, {"PsiphonTUN": 27}.__getitem__) == Traffic(sent=27, received=11)
    file.write_text("    lo: 1 2 0 0 0 0 0 0 3 4 0 0 0 0 0 0\n")
    assert read_traffic(file) is None
    assert read_traffic(tmp_path / "none") is None


class Clocks:
    """Both clocks, set by hand."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.wall, self.running = NOW, 1000.0
        patch.setattr(clocks, "read_wall", lambda: self.wall)
        patch.setattr(clocks, "read_running", lambda: self.running)

    def pass_time(self, seconds: float) -> None:
        self.wall += timedelta(seconds=seconds)
        self.running += seconds


def test_the_skew_is_how_far_this_clock_is_ahead_also_after_it_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    both = Clocks(monkeypatch)
    server = clocks.ServerClock(NOW - timedelta(seconds=90))
    assert server.measure_skew() == 90
    both.pass_time(3600)
    assert server.measure_skew() == 90
    both.wall -= timedelta(seconds=90)
    assert server.measure_skew() == 0


@pytest.mark.parametrize("years", [-50, -1, 1, 150])
def test_a_moment_is_shown_by_the_clock_as_it_was_set_last(monkeypatch: pytest.MonkeyPatch, years: int) -> None:
    both = Clocks(monkeypatch)
    moment = clocks.Moment()
    both.pass_time(60)
    assert moment.tell() == NOW
    both.wall += timedelta(days=365 * years)
    moment.correct()
    assert moment.tell() == both.wall - timedelta(seconds=60)


def test_nothing_in_the_daemon_reads_the_wall_clock_but_what_people_read() -> None:
    """Whoever reads it elsewhere must say here why a jump of years does no harm."""
    allowed = {"linux/clocks.py": "the one place", "core/verify.py": "when a core was installed; not the daemon"}
    root = Path(clocks.__file__).parents[1]
    reading = re.compile(r"datetime\.now|datetime\.utcnow|time\.time\(|time_ns\(|date\.today|CLOCK_REALTIME\)")
    found = {
        str(path.relative_to(root))
        for part in ("service", "core", "linux", "policy")
        for path in (root / part).rglob("*.py")
        if reading.search(path.read_text(encoding="utf-8"))
    }
    assert found <= set(allowed), found


def test_no_clock_can_be_set_so_late_that_the_timer_that_tells_of_jumps_expires() -> None:
    ktime_max_seconds = (2**63 - 1) // 10**9
    assert ktime_max_seconds - 30 * 365 * 24 * 3600 < clocks.FAR_FUTURE


def test_a_sign_in_page_is_seen_where_networkd_notes_it_and_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "3").write_text("OPER_STATE=routable\nCAPTIVE_PORTAL=https://portal.example\n")
    (tmp_path / "4").write_text("OPER_STATE=routable\nCAPTIVE_PORTAL=\n")
    assert [find_portal(index, tmp_path) for index in (3, 4, 5)] == [True, False, False]


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, Reason.DISK),
        (errno.EROFS, Reason.DISK),
        (errno.EDQUOT, Reason.DISK),
        (errno.ENOENT, Reason.CORE_MISSING),
    ],
)
def test_a_start_that_failed_for_want_of_room_says_so(number: int, reason: Reason) -> None:
    error = CoreError("why")
    error.__cause__ = OSError(number, "why")
    assert explain_failed_start(error) is reason


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_is_one_sentence_for_the_user(reason: Reason) -> None:
    reported = explain(reason)
    assert reported.sentence
    assert not reported.sentence.endswith(".")
    assert "\n" not in reported.sentence + (reported.next_step or "")


# -- timers and clocks ------------------------------------------------------------------------------------------------


def never(part: str, error: BaseException) -> None:
    pytest.fail(f"{part} failed: {error!r}")


def name_timers(events: Iterable[Event]) -> list[Timer]:
    """The timers that fired."""
    return [event.timer for event in events if isinstance(event, TimerFired)]


def test_timers_fire_with_up_to_a_fifth_more_and_say_what_is_next() -> None:
    async def scenario() -> list[float]:
        loop = asyncio.get_running_loop()
        fired: list[tuple[float, Event]] = []
        timers = Timers(lambda event: fired.append((loop.time(), event)), Supervisor(never).guard)
        begin = loop.time()
        timers.arm(Timer.CALM, 0.05)
        assert timers.find_next() is None, "nothing is retried when the network is calm"
        for _ in range(2):
            timers.arm(Timer.RETRY, 0.05)  # arming a timer again restarts it
        following = timers.find_next()
        assert following is not None
        assert following.what
        assert abs((following.at - datetime.now(UTC)).total_seconds()) < 60
        await asyncio.sleep(0.3)
        assert name_timers(event for _, event in fired).count(Timer.RETRY) == 1
        assert timers.find_next() is None
        timers.arm(Timer.ESTABLISH, 0.01)
        timers.cancel()
        await asyncio.sleep(0.05)
        assert Timer.ESTABLISH not in name_timers(event for _, event in fired)
        return [when - begin for when, _ in fired]

    for took in run_skipping(scenario()):
        assert 0.05 <= took < 0.05 * (1 + JITTER) + 0.001


def test_a_core_that_keeps_talking_is_never_taken_to_hang_and_a_silent_one_is() -> None:
    async def scenario() -> None:
        fired: list[Event] = []
        timers = Timers(fired.append, Supervisor(never).guard)
        timers.arm(Timer.QUIET, 0.2)
        for _ in range(12):
            await asyncio.sleep(0.04)
            timers.heard(Timer.QUIET)
        assert fired == []
        await asyncio.sleep(0.6)
        assert name_timers(fired) == [Timer.QUIET]

    run_skipping(scenario())


def test_what_comes_regularly_is_not_woken_for() -> None:
    async def scenario() -> None:
        fired: list[Event] = []
        woken: list[str] = []

        def guard(part: str, function: Callable[[], object]) -> Callable[[], None]:
            def guarded() -> None:
                woken.append(part)
                function()

            return guarded

        timers = Timers(fired.append, guard)
        timers.arm(Timer.RENEWAL, 0.8)
        for _ in range(20):
            await asyncio.sleep(0.2)
            timers.heard(Timer.RENEWAL)
        assert woken == []
        timers.heard(Timer.QUIET)  # a timer that does not run
        await asyncio.sleep(2)
        assert name_timers(fired) == [Timer.RENEWAL]

    run_skipping(scenario())


def test_a_sleep_is_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    slept = [100.0]
    monkeypatch.setattr("psiphon_vpn.linux.clocks.read_slept", lambda: slept[0])
    clock = SleepClock()
    assert not clock.take()
    slept[0] += 0.01
    assert not clock.take(), "two clocks cannot be read at the same moment"
    slept[0] += 2
    assert [clock.take(), clock.take()] == [True, False]


def test_the_timer_that_tells_of_jumps_is_silent_while_there_is_none() -> None:
    async def scenario() -> bool:
        timer = JumpTimer()
        reported = asyncio.Event()
        asyncio.get_running_loop().add_reader(timer.fileno(), reported.set)
        timer.acknowledge()
        await asyncio.sleep(0.1)
        asyncio.get_running_loop().remove_reader(timer.fileno())
        timer.close()
        return reported.is_set()

    assert abs(read_slept() - read_slept()) < 0.1
    assert not asyncio.run(scenario())
