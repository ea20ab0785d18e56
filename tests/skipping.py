# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""An event loop with its own clock: when it has nothing else to do, it lets the time pass at once.

Only for code that waits for timers. It does not wait for files, processes or other threads.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Skipping(selectors.DefaultSelector):
    """A selector that does not wait: it moves the clock."""

    now = 1000.0
    waits = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return what is ready now; otherwise move the clock."""
        ready = super().select(0)
        assert ready or timeout is not None, "nothing is left that could happen"
        if not ready and timeout:
            self.now += timeout
            self.waits += 1
        return ready


class SkippingLoop(asyncio.SelectorEventLoop):
    """An event loop with its own clock."""

    def __init__(self) -> None:
        self._skipping = _Skipping()
        super().__init__(self._skipping)

    def time(self) -> float:
        """Seconds of that clock."""
        return self._skipping.now

    @property
    def waits(self) -> int:
        """How often it had nothing else to do than to wait: as often would a timer have woken the process."""
        return self._skipping.waits

    def pass_time(self, seconds: float) -> None:
        """Let time pass in which this process does not run."""
        self._skipping.now += seconds


def run_skipping(work: Coroutine[Any, Any, T]) -> T:
    """Like asyncio.run, with that clock."""
    with asyncio.Runner(loop_factory=SkippingLoop) as runner:
        return runner.run(work)
