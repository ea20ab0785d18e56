"""How much the daemon may write to its log, whatever happens."""

import logging
import time
from collections.abc import Callable
from typing import Final

BURST: Final = 200
"""Lines that may come at once: a whole life of starting, connecting and failing has some twenty."""
LINES_PER_SECOND: Final = 2.0


class LogLimit(logging.Filter):
    """Lets a burst through and then so many lines a second; says how many it left out.

    Args:
        clock: seconds, of a clock that only goes forward.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._allowance = float(BURST)
        self._looked_at = clock()
        self._left_out = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether this line is written."""
        now = self._clock()
        self._allowance = min(float(BURST), self._allowance + (now - self._looked_at) * LINES_PER_SECOND)
        self._looked_at = now
        if self._allowance < 1:
            self._left_out += 1
            return False
        self._allowance -= 1
        if self._left_out:
            record.msg = f"({self._left_out} lines left out) {record.msg}"
            self._left_out = 0
        return True
