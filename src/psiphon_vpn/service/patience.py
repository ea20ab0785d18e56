# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""How long a tunnel that was asked may be silent before it is given up. Pure.

A blocked server and a slow line look alike for a while, and giving up a living tunnel costs the user every connection.
So the wait follows the answers before it, as TCP's does, and every sign of life begins it anew: a packet out of the
tunnel, and what the kernel has heard of the far end of the core's connections.
"""

from typing import Final

URGENT_SECONDS, USUAL_SECONDS = 3.0, 4.0
"""The shortest silence that gives a tunnel up: where applications wait for an answer, and where only the question does.

In the first, TCP has sent a lost segment again three times on a quick line (RFC 6298; Linux begins with 0.2 s)."""
LOST_SECONDS: Final = 1.0
"""The silence that is enough if the core itself says that its tunnel carries no packets. It is waited for since a core
that notices the loss of its tunnel has the next one sooner than another core would."""
SLOW_SECONDS: Final = 8.0
"""The longest silence that is waited out on a slow line."""
UNCARRIED_SECONDS: Final = 12.0
"""So long an answer is waited for while the far end acknowledges what is sent, and the tunnel brings no packet."""
LONGEST_SECONDS: Final = 60.0
"""So long while packets come: on a throttled line the answer may queue behind half a megabyte."""


class Patience:
    """How long an answer may take, from how long earlier ones took (RFC 6298, 2; twice the mean, since they are few).

    Args:
        first: seconds until the first answer.
    """

    def __init__(self, first: float) -> None:
        self._smooth, self._varies = first, first / 2

    def learn(self, seconds: float) -> None:
        """An answer came after so many seconds."""
        self._varies += (abs(seconds - self._smooth) - self._varies) / 4
        self._smooth += (seconds - self._smooth) / 8

    def find(self, *, urgent: bool) -> float:
        """Seconds of silence to wait out. urgent: applications get no answer either."""
        shortest = URGENT_SECONDS if urgent else USUAL_SECONDS
        return min(SLOW_SECONDS, max(shortest, 2 * self._smooth + 4 * self._varies))


class Silence:
    """The silence after a question.

    Args:
        began: when it was asked, seconds of a clock that only goes forward.
        patience: seconds.
    """

    def __init__(self, began: float, patience: float) -> None:
        self._began = self._heard_at = self._carried_at = began
        self._patience = patience

    def hear(self, at: float) -> None:
        """The far end acknowledged something then."""
        self._heard_at = max(self._heard_at, at)

    def carry(self, at: float) -> None:
        """A packet came out of the tunnel."""
        self._carried_at = max(self._carried_at, at)
        self.hear(at)

    @property
    def ends_at(self) -> float:
        """When the tunnel is given up if nothing more is heard."""
        return min(
            self._heard_at + self._patience,
            self._carried_at + max(UNCARRIED_SECONDS, self._patience),
            self._began + LONGEST_SECONDS,
        )
