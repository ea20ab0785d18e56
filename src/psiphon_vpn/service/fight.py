# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether putting changes back has become a fight with another program, and how long to wait next. Pure."""

from collections import deque
from dataclasses import dataclass, field
from typing import Final

AT_ONCE: Final = 6
"""Up to so many changes within WINDOW_SECONDS are put back at once: a firewall that restarts makes two or three."""
WINDOW_SECONDS: Final = 5.0
CALM_SECONDS: Final = 2.0
"""A fight is over when nothing was changed for this time."""
SWEEP_SECONDS: Final = 0.02
"""Changes within this time count as one: `ip rule flush` deletes rule by rule."""
FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 0.02, 1.0


@dataclass
class Fight:
    """Counts other programs' changes and their repairs. Times are seconds of a clock that only goes forward.

    Attributes:
        began: when the fight began; None while there is none.
        count: repairs during the fight.
        pause: how long to wait after the last repair.
    """

    began: float | None = None
    count: int = 0
    pause: float = 0.0
    _blows: deque[float] = field(default_factory=lambda: deque(maxlen=AT_ONCE + 1))
    _struck: float = float("-inf")
    _healed: float = float("-inf")

    def strike(self, now: float) -> bool:
        """Count a change by another program. Returns whether this is a fight."""
        self.settle(now)
        self._struck = now
        if not self._blows or now - self._blows[-1] >= SWEEP_SECONDS:
            self._blows.append(now)
        if self.began is None and len(self._blows) > AT_ONCE and now - self._blows[0] <= WINDOW_SECONDS:
            self.began = now
        return self.began is not None

    def heal(self, now: float) -> None:
        """Count a repair."""
        self._healed = now
        if self.began is not None:
            self.count += 1
            self.pause = min(MAX_PAUSE_SECONDS, max(FIRST_PAUSE_SECONDS, self.pause * 2))

    def wait(self, now: float) -> float:
        """Seconds until the next repair; 0 for at once."""
        return max(0.0, self._healed + self.pause - now)

    def settle(self, now: float) -> tuple[int, float] | None:
        """End a fight that is over; returns its repairs and its length in seconds, None if it goes on."""
        if self.began is None or now - self._struck < CALM_SECONDS:
            return None
        summary = self.count, self._struck - self.began
        self.began, self.count, self.pause = None, 0, 0.0
        self._blows.clear()
        return summary
