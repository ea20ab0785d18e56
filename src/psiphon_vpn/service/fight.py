"""When putting back has become a fight with another program, and how long to wait before the next blow. Pure."""

from collections import deque
from dataclasses import dataclass, field
from typing import Final

AT_ONCE: Final = 6
"""So many changes within WINDOW_SECONDS are each put back at once: a firewall that restarts makes two or three."""
WINDOW_SECONDS: Final = 5.0
CALM_SECONDS: Final = 2.0
"""A fight is over when nothing was changed for so long."""
SWEEP_SECONDS: Final = 0.02
"""What is changed within so long is one change: `ip rule flush` deletes rule by rule."""
FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 0.02, 1.0


@dataclass
class Fight:
    """Counts changes of others, and what is put back. Times are seconds, of a clock that only goes forward.

    Attributes:
        began: when the fight began; None while there is none.
        count: what was put back in it.
        pause: how long to wait after the last one.
    """

    began: float | None = None
    count: int = 0
    pause: float = 0.0
    _blows: deque[float] = field(default_factory=lambda: deque(maxlen=AT_ONCE + 1))
    _struck: float = float("-inf")
    _healed: float = float("-inf")

    def strike(self, now: float) -> bool:
        """Somebody changed something. Returns whether this is a fight."""
        self.settle(now)
        self._struck = now
        if not self._blows or now - self._blows[-1] >= SWEEP_SECONDS:
            self._blows.append(now)
        if self.began is None and len(self._blows) > AT_ONCE and now - self._blows[0] <= WINDOW_SECONDS:
            self.began = now
        return self.began is not None

    def heal(self, now: float) -> None:
        """It was put back."""
        self._healed = now
        if self.began is not None:
            self.count += 1
            self.pause = min(MAX_PAUSE_SECONDS, max(FIRST_PAUSE_SECONDS, self.pause * 2))

    def wait(self, now: float) -> float:
        """Seconds until the next may be put back; 0 for at once."""
        return max(0.0, self._healed + self.pause - now)

    def settle(self, now: float) -> tuple[int, float] | None:
        """End a fight that is over: what was put back in it, and for how many seconds it went on; None otherwise."""
        if self.began is None or now - self._struck < CALM_SECONDS:
            return None
        told = self.count, self._struck - self.began
        self.began, self.count, self.pause = None, 0, 0.0
        self._blows.clear()
        return told
