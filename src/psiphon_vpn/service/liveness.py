# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""When to ask whether the tunnel still carries packets: at intervals, and soon when it looks dead.

It counts packets on the TUN: what applications sent into it, and what came back. The TUN's own counter of sent packets
only counts what the core has read. A core that hangs reads nothing; then the queue before the TUN shows the packets.
"""

import enum
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from psiphon_vpn.linux.queueing import read_queued
from psiphon_vpn.policy import names

LIVENESS_SECONDS: Final = 15.0
"""The longest time between two questions, of about 150 bytes each."""
LOOK_SECONDS: Final = 0.5
"""Between two looks at the counters while something goes into the tunnel. Otherwise there is one with each renewal."""
UNANSWERED_LOOKS: Final = 2
"""So many looks in a row found that nothing came back, the first of them that something had gone out."""
UNANSWERED_PACKETS: Final = 2
"""A connection that nobody answers has sent as many after a second (RFC 6298, 2.1)."""
_PROC_NET_DEV: Final = Path("/proc/self/net/dev")


@dataclass(frozen=True)
class Traffic:
    """Packets since the TUN was made: sent into the tunnel, received from it."""

    sent: int
    received: int


def read_traffic(path: Path = _PROC_NET_DEV, read_queue: Callable[[str], int] = read_queued) -> Traffic | None:
    """The counters of the TUN (proc_pid_net_dev(5)) and of its queue; None if there is no TUN."""
    try:
        for line in path.read_text().splitlines():
            name, _, rest = line.partition(":")
            if name.strip() == names.TUN_NAME:
                fields = rest.split()
                return Traffic(sent=max(int(fields[9]), read_queue(names.TUN_NAME)), received=int(fields[1]))
    except (OSError, ValueError, IndexError):
        return None
    return None


class Doubt(enum.Enum):
    """Whether the tunnel should be asked, and why."""

    NONE = enum.auto()
    DUE = enum.auto()
    """It was not asked for long."""
    UNANSWERED = enum.auto()
    """Applications get no answer."""


class Liveness:
    """Decides from the counters whether to ask the tunnel.

    Args:
        now: seconds of a clock that only goes forward.
    """

    def __init__(self, now: float) -> None:
        self._asked_at = now
        self._last: Traffic | None = None
        self._unanswered = 0
        self._lost = 0
        self.busy = False
        """Whether something went into the tunnel before the last look, or may wait for an answer: look again soon."""

    def asked(self, now: float) -> None:
        """An answer came. Counting begins again: the question itself was traffic."""
        self._asked_at = now
        self._last = None
        self._unanswered = self._lost = 0

    def look(self, traffic: Traffic | None, now: float) -> Doubt:
        """Whether to ask now, and why."""
        sent = 0
        if traffic is not None and self._last is not None:
            sent = max(0, traffic.sent - self._last.sent)
            if traffic.received != self._last.received:
                self._unanswered = self._lost = 0
            else:
                self._lost += sent
                self._unanswered += self._lost > 0
        self._last = traffic
        self.busy = sent > 0 or 0 < self._unanswered < UNANSWERED_LOOKS
        if self._unanswered >= UNANSWERED_LOOKS and self._lost >= UNANSWERED_PACKETS:
            return Doubt.UNANSWERED
        return Doubt.DUE if now - self._asked_at >= LIVENESS_SECONDS else Doubt.NONE
