"""The state machine's timers, and what is told of them: what is tried next, and when."""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from psiphon_vpn.i18n import _
from psiphon_vpn.linux.clocks import read_wall
from psiphon_vpn.service.effects import Timer
from psiphon_vpn.service.events import Event, TimerFired

JITTER = 0.2
"""So much more at random, so that many machines do not come back in step."""


@dataclass(frozen=True)
class NextTry:
    """What happens next by itself.

    Attributes:
        at: when, UTC.
        what: a sentence for the user.
    """

    at: datetime
    what: str


class Timers:
    """Runs out in an event each. A timer that is armed again starts anew.

    Args:
        post: takes the events.
    """

    def __init__(self, post: Callable[[Event], None]) -> None:
        self._post = post
        self._running: dict[Timer, asyncio.TimerHandle] = {}
        self._quiet_seconds = 0.0
        self._heard_at = 0.0

    def arm(self, timer: Timer, seconds: float) -> None:
        """Post TimerFired after so many seconds and a little more."""
        loop = asyncio.get_running_loop()
        delay = seconds * (1 + random.random() * JITTER)  # noqa: S311
        if timer is Timer.QUIET:
            self._quiet_seconds, self._heard_at = delay, loop.time()
        self._schedule(timer, delay)

    def _schedule(self, timer: Timer, delay: float) -> None:
        if (old := self._running.pop(timer, None)) is not None:
            old.cancel()
        self._running[timer] = asyncio.get_running_loop().call_later(delay, self._fire, timer)

    def heard(self) -> None:
        """The core said something: QUIET starts anew. Costs next to nothing, since a core may say a great deal."""
        self._heard_at = asyncio.get_running_loop().time()

    def _fire(self, timer: Timer) -> None:
        del self._running[timer]
        if timer is Timer.QUIET:
            left = self._heard_at + self._quiet_seconds - asyncio.get_running_loop().time()
            if left > 0:
                self._schedule(timer, left)
                return
        self._post(TimerFired(timer))

    def cancel(self) -> None:
        """Forget all of them."""
        for handle in self._running.values():
            handle.cancel()
        self._running.clear()

    def find_next(self) -> NextTry | None:
        """What is tried next by itself and when, None where nothing is but to wait for something outside."""
        sentences = {
            Timer.RETRY: _("connecting again"),
            Timer.WAKE: _("connecting, if the machine is still awake"),
            Timer.ESTABLISH: _("giving this attempt up for a new one"),
        }
        for timer, what in sentences.items():
            if timer in self._running:
                # By the wall clock as it is now: it may have been set since the timer was armed.
                left = self._running[timer].when() - asyncio.get_running_loop().time()
                return NextTry(read_wall() + timedelta(seconds=left), what)
        return None
