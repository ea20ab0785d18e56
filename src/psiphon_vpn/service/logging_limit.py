# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A limit of what the daemon writes to its log, whatever happens."""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

BURST: Final = 200
"""Lines at once: starting, connecting and failing together make some twenty."""
LINES_PER_SECOND: Final = 2.0
SAME_BURST: Final = 10
"""Repetitions of one line at once."""
SAME_PER_SECOND: Final = 0.1
_REMEMBERED: Final = 64


class _Allowance:
    """A burst, and then so many per second."""

    def __init__(self, burst: float, rate: float, now: float) -> None:
        self._burst, self._rate = burst, rate
        self._left, self._looked_at = burst, now

    def take(self, now: float) -> bool:
        self._left = min(self._burst, self._left + (now - self._looked_at) * self._rate)
        self._looked_at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class LogLimit(logging.Filter):
    """Passes a burst, then so many lines a second, and fewer repetitions of one line; counts what it left out.

    Args:
        clock: seconds of a clock that only goes forward.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._all = _Allowance(BURST, LINES_PER_SECOND, clock())
        self._same: OrderedDict[str, _Allowance] = OrderedDict()
        self._left_out = 0

    @property
    def remembered(self) -> int:
        """How many lines are known, so that their repetitions are counted."""
        return len(self._same)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether this line is written."""
        now = self._clock()
        line = record.getMessage()
        same = self._same.setdefault(line, _Allowance(SAME_BURST, SAME_PER_SECOND, now))
        self._same.move_to_end(line)
        if len(self._same) > _REMEMBERED:
            self._same.popitem(last=False)
        if not same.take(now) or not self._all.take(now):
            self._left_out += 1
            return False
        if self._left_out:
            record.msg = f"({self._left_out} lines left out) {record.msg}"
            self._left_out = 0
        return True
