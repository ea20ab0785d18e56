# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Sleep: close before it, check and open again after it, even on another network (R6, R17)."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from psiphon_vpn.errors import UserError
from psiphon_vpn.i18n import _
from psiphon_vpn.linux.clocks import JumpTimer, SleepClock
from psiphon_vpn.policy import names
from psiphon_vpn.service.events import SleepComing, Woke
from psiphon_vpn.service.parts import Part
from psiphon_vpn.service.runner import Runner
from psiphon_vpn.tasks import call_when_readable

log = logging.getLogger(__name__)

RECHECK_SECONDS = 0.05


class SleepGuard:
    """Handles sleeps that psiphon-sleep.service or the clock report.

    Args:
        runner: takes the events.
        lease_remains: whether the kernel holds a lease now.
        look_at_links: reads the network again and posts what it finds.
    """

    def __init__(
        self,
        *,
        runner: Runner,
        lease_remains: Callable[[], Awaitable[bool]],
        look_at_links: Callable[[], Awaitable[None]],
    ) -> None:
        self._runner = runner
        self._lease_remains = lease_remains
        self._look_at_links = look_at_links
        self._clock = SleepClock()

    async def prepare(self) -> None:
        """Close before anything else, and wait until the kernel itself holds no lease.

        Raises:
            UserError: it still holds one. The lease runs out by itself, but the machine does not wait for that.
        """
        self._runner.close_now()
        self._runner.post(SleepComing())
        for _turn in range(int(names.LEASE_SECONDS / RECHECK_SECONDS)):
            # Only after the event was handled: an earlier event may still open.
            if self._runner.model.asleep and not await self._lease_remains():
                return
            await asyncio.sleep(RECHECK_SECONDS)
        raise UserError(
            _("The tunnel could not be closed"),
            _("the kernel still holds a permission to pass"),
            _("It runs out by itself within {seconds} seconds.").format(seconds=names.LEASE_SECONDS),
        )

    async def resume(self) -> None:
        """Connect again, once for each sleep, whether this call or the clock reports it first."""
        if not self._clock.take() and not self._runner.model.asleep:
            return
        self._runner.close_now()
        await self._reconnect()

    def check_clock(self) -> bool:
        """Whether the machine has slept since the last call; if so, close and connect again."""
        slept = self._clock.take()
        if slept:
            log.warning("the machine has slept")
            self._runner.close_now()
            self._runner.tasks.start(Part.WAKING, self._reconnect())
        return slept

    async def _reconnect(self) -> None:
        await self._look_at_links()
        self._runner.post(Woke())

    def watch_jumps(self) -> None:
        """Check the clock whenever it jumps. Without such a timer each renewal of the lease checks it."""
        try:
            timer = JumpTimer()
        except OSError as error:
            log.info("no timer reports jumps of the clock: %s", error)
            return

        def jumped() -> None:
            timer.acknowledge()
            self._runner.correct_since()
            self.check_clock()

        call_when_readable(timer.fileno(), self._runner.tasks.guard(Part.CLOCK, jumped))
