"""Sleep: closed before it, checked and opened anew after it, even on another network (R6, R17)."""

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
    """Carries out what psiphon-sleep.service or the clock tell.

    Args:
        runner: takes the events.
        lease_remains: whether the kernel holds a lease now.
        look_at_links: reads the network anew and posts what it finds.
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
        """Close before anything else, and wait until the kernel itself holds no lease any more.

        Raises:
            UserError: it still holds one. It runs out by itself, but the machine does not wait for that.
        """
        self._runner.close_now()
        self._runner.post(SleepComing())
        for _turn in range(int(names.LEASE_SECONDS / RECHECK_SECONDS)):
            # Not before the event was handled: one that was on its way before it may still open.
            if self._runner.model.asleep and not await self._lease_remains():
                return
            await asyncio.sleep(RECHECK_SECONDS)
        raise UserError(
            _("The tunnel could not be closed"),
            _("the kernel still holds a permission to pass"),
            _("It runs out by itself within {seconds} seconds.").format(seconds=names.LEASE_SECONDS),
        )

    async def resume(self) -> None:
        """Begin anew, once for each sleep, whoever tells of it first: this, which was told, or the clock."""
        if not self._clock.take() and not self._runner.model.asleep:
            return
        self._runner.close_now()
        await self._begin_anew()

    def check_clock(self) -> bool:
        """Whether the machine has slept since this was last asked; if so, it is closed and begun anew."""
        slept = self._clock.take()
        if slept:
            log.warning("the machine has slept")
            self._runner.close_now()
            self._runner.tasks.start(Part.WAKING, self._begin_anew())
        return slept

    async def _begin_anew(self) -> None:
        await self._look_at_links()
        self._runner.post(Woke())

    def watch_jumps(self) -> None:
        """Have the clock checked whenever it jumps. Without such a timer it is checked at each renewal of the lease."""
        try:
            timer = JumpTimer()
        except OSError as error:
            log.info("no timer tells of jumps of the clock: %s", error)
            return

        def jumped() -> None:
            timer.acknowledge()
            self._runner.correct_since()
            self.check_clock()

        call_when_readable(timer.fileno(), self._runner.tasks.guard(Part.CLOCK, jumped))
