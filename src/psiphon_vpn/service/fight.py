"""When putting back has become a fight with another program, and how long to wait before the next blow. Pure."""

from collections import deque
from dataclasses import dataclass, field
from typing import Final

AT_ONCE: Final = 6
"""So many changes within WINDOW_SECONDS are each put back at once: a firewall that restarts makes two or three."""
WINDOW_SECONDS: Final = 5.0
CALM_SECONDS: Final = 2.0
"""A fight is over when nothing was changed for so long."""
FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 0.02, 1.0


@dataclass
class Fight:
    """Counts what is put back. Times are seconds, of a clock that only goes forward.

    Attributes:
        began: when the fight began; None while there is none.
        count: what was put back in it.
        pause: how long to wait after the last one.
    """

    began: float | None = None
    count: int = 0
    pause: float = 0.0
    _recent: deque[float] = field(default_factory=lambda: deque(maxlen=AT_ONCE + 1))
    _last: float = float("-inf")

    def note(self, now: float) -> bool:
        """Something was put back. Returns whether this is a fight."""
        self.settle(now)
        self._last = now
        self._recent.append(now)
        if self.began is None:
            if len(self._recent) <= AT_ONCE or now - self._recent[0] > WINDOW_SECONDS:
                return False
            self.began, self.count = now, len(self._recent) - 1
        self.count += 1
        self.pause = min(MAX_PAUSE_SECONDS, max(FIRST_PAUSE_SECONDS, self.pause * 2))
        return True

    def wait(self, now: float) -> float:
        """Seconds until the next may be put back; 0 for at once."""
        return max(0.0, self._last + self.pause - now)

    def settle(self, now: float) -> tuple[int, float] | None:
        """End a fight that is over: what was put back in it, and for how many seconds it went on; None otherwise."""
        if self.began is None or now - self._last < CALM_SECONDS + self.pause:
            return None
        told = self.count, self._last - self.began
        self.began, self.count, self.pause = None, 0, 0.0
        self._recent.clear()
        return told
