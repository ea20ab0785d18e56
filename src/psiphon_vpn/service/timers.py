# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The state machine's timers, and the next attempt that follows from them."""

import asyncio
import functools
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from psiphon_vpn.i18n import _
from psiphon_vpn.linux.clocks import read_wall
from psiphon_vpn.service.events import Event, Timer, TimerFired
from psiphon_vpn.service.parts import Part
from psiphon_vpn.tasks import call_later

JITTER = 0.2
"""Up to this fraction is added at random, so that many machines do not return in step."""


@dataclass(frozen=True)
class NextTry:
    """What happens next by itself.

    Attributes:
        at: when, UTC.
        left: seconds until then.
        what: a sentence for the user.
    """

    at: datetime
    left: float
    what: str


class Timers:
    """Each timer posts an event when it runs out. Arming it again restarts it.

    Each time that a timer is armed, put off or cancelled, an event that it posted before is void, whenever it is read.
    Events have a number, and `take` knows the last one.

    Args:
        post: takes the events.
        guard: makes a callback that reports its failure (`Supervisor.guard`).
    """

    def __init__(
        self, post: Callable[[Event], None], guard: Callable[[str, Callable[[], object]], Callable[[], None]]
    ) -> None:
        self._post = post
        self._guard = guard
        self._running: dict[Timer, asyncio.TimerHandle] = {}
        self._patience: dict[Timer, float] = {}
        self._heard_at: dict[Timer, float] = {}
        self._numbers: dict[Timer, int] = {}
        """Of those that run, or have fired and not been taken yet."""
        self._count = 0

    def arm(self, timer: Timer, seconds: float) -> None:
        """Post TimerFired after so many seconds and a little more."""
        loop = asyncio.get_running_loop()
        delay = seconds * (1 + random.random() * JITTER)  # noqa: S311
        self._patience[timer], self._heard_at[timer] = delay, loop.time()
        self._schedule(timer, delay)

    def _schedule(self, timer: Timer, delay: float) -> None:
        if (old := self._running.pop(timer, None)) is not None:
            old.cancel()
        self._count += 1
        self._numbers[timer] = self._count
        self._running[timer] = call_later(delay, self._guard(Part.TIMERS, functools.partial(self._fire, timer)))

    def heard(self, timer: Timer) -> None:
        """Restart a timer, since what it waits for came. This is cheap: a core may send many notices.

        It is postponed well before it runs out, so that a regular source does not cause wake-ups.
        """
        if timer not in self._numbers:
            return
        now = asyncio.get_running_loop().time()
        self._heard_at[timer] = now
        running = self._running.get(timer)
        # Without a handle it has fired, and its event waits.
        if running is None or running.when() - now < self._patience[timer] / 2:
            self._schedule(timer, self._patience[timer])

    def _fire(self, timer: Timer) -> None:
        del self._running[timer]
        left = self._heard_at[timer] + self._patience[timer] - asyncio.get_running_loop().time()
        # Less than a millisecond: the event loop's clock is no finer than that.
        if left > 0.001:
            self._schedule(timer, left)
            return
        self._post(TimerFired(timer, self._numbers[timer]))

    def take(self, event: TimerFired) -> bool:
        """Whether the event still counts: the timer was not armed, put off or cancelled since. Once for each."""
        if self._numbers.get(event.timer) != event.number:
            return False
        del self._numbers[event.timer]
        return True

    def cancel(self) -> None:
        """Forget all of them, and what they posted."""
        for handle in self._running.values():
            handle.cancel()
        self._running.clear()
        self._numbers.clear()

    def find_next(self) -> NextTry | None:
        """The next attempt, and when; None if the service only waits for something outside."""
        sentences = {
            Timer.RETRY: _("connecting again"),
            Timer.WAKE: _("connecting, if the machine is still awake"),
            Timer.ESTABLISH: _("giving this attempt up for a new one"),
        }
        for timer, what in sentences.items():
            if timer in self._running:
                # By the wall clock as it is now: it may have been set since the timer was armed.
                left = max(0.0, self._running[timer].when() - asyncio.get_running_loop().time())
                return NextTry(read_wall() + timedelta(seconds=left), left, what)
        return None
