"""When to ask whether the tunnel still carries packets: at intervals, and soon when it looks dead.

It counts packets on the TUN: what applications sent into it, and what came back. The TUN's own counter of sent packets
only counts what the core has read. A core that hangs reads nothing; then the queue before the TUN shows the packets.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from psiphon_vpn.linux.queueing import read_queued
from psiphon_vpn.policy import names

LIVENESS_SECONDS: Final = 15.0
"""The longest time between two questions, of about 150 bytes each."""
UNANSWERED_TICKS: Final = 2
"""So many checks in a row found packets that went out, and none that came back."""
UNANSWERED_PACKETS: Final = 3
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

    def asked(self, now: float) -> None:
        """An answer came. Counting begins again: the question itself was traffic."""
        self._asked_at = now
        self._last = None
        self._unanswered = self._lost = 0

    def look(self, traffic: Traffic | None, now: float) -> bool:
        """Whether to ask now."""
        if traffic is not None and self._last is not None:
            if traffic.received != self._last.received:
                self._unanswered = self._lost = 0
            elif traffic.sent > self._last.sent:
                self._unanswered += 1
                self._lost += traffic.sent - self._last.sent
        self._last = traffic
        silent = self._unanswered >= UNANSWERED_TICKS and self._lost >= UNANSWERED_PACKETS
        return silent or now - self._asked_at >= LIVENESS_SECONDS
