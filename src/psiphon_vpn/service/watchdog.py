# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Tells the service manager that the event loop runs, so that it kills a daemon that hangs (sd_watchdog_enabled(3)).

While the tunnel is open, a renewal of the lease wakes the daemon every two seconds: then the notification goes with one
of them, and nothing wakes for it alone.
"""

import asyncio
import contextlib
import os
from typing import Final

from psiphon_vpn.service.sdnotify import notify

MIN_SECONDS: Final = 1.0
"""However short the time is that the service manager allows, it is not told more often."""


def read_allowed() -> float:
    """Seconds that the service manager allows between two notifications; 0 if it expects none."""
    return int(os.environ.get("WATCHDOG_USEC", "0")) / 1e6


class Watchdog:
    """Notifies after half the time that is allowed, or with a renewal after a quarter of it.

    Args:
        allowed: seconds; 0 or less: nothing is expected.
    """

    def __init__(self, allowed: float) -> None:
        self._allowed = allowed
        self._told_at = 0.0
        self._due = asyncio.Event()

    def renewed(self) -> None:
        """The daemon is awake anyway: notify now, if the last time is not recent."""
        if asyncio.get_running_loop().time() - self._told_at >= self._allowed / 4:
            self._due.set()

    async def run(self) -> None:
        """Notify for ever."""
        if self._allowed <= 0:
            await asyncio.Event().wait()
        while True:
            self._due.clear()
            self._told_at = asyncio.get_running_loop().time()
            notify("WATCHDOG=1")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(MIN_SECONDS, self._allowed / 2)):
                    await self._due.wait()
