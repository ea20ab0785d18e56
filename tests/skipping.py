"""An event loop with a clock of its own: where nothing else is to be done, it says that time has passed.

For what has to do with timers alone. What comes from a file, a process or another thread is not waited for.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Skipping(selectors.DefaultSelector):
    """Does not wait for time: it says that it has passed."""

    now = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """What is ready now; else time goes on."""
        ready = super().select(0)
        assert ready or timeout is not None, "nothing would ever happen again"
        self.now += 0.0 if ready else timeout or 0.0
        return ready


class SkippingLoop(asyncio.SelectorEventLoop):
    """An event loop with a clock of its own."""

    def __init__(self) -> None:
        self._skipping = _Skipping()
        super().__init__(self._skipping)

    def time(self) -> float:
        """Seconds of that clock."""
        return self._skipping.now

    def pass_time(self, seconds: float) -> None:
        """So much passes while nothing of this process runs."""
        self._skipping.now += seconds


def run_skipping(work: Coroutine[Any, Any, T]) -> T:
    """Like asyncio.run, by that clock."""
    with asyncio.Runner(loop_factory=SkippingLoop) as runner:
        return runner.run(work)
