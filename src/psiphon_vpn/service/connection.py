# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tunnel carries, from the core's notices. For people only: nothing is decided by it."""

from collections import deque
from collections.abc import Callable
from datetime import UTC
from typing import Final

from psiphon_vpn.core import events as notices
from psiphon_vpn.linux.clocks import Moment, read_running

RATE_SECONDS: Final = 5.0
"""A rate is of the last so many seconds. The core counts each second in which something passes."""


class Connection:
    """The tunnel that the core has, if it has one.

    Args:
        clock: seconds on a clock that only goes forward.
    """

    def __init__(self, clock: Callable[[], float] = read_running) -> None:
        self._clock = clock
        self._forget_tunnel()

    def _forget_tunnel(self) -> None:
        self._protocol = ""
        self._limits = notices.TrafficRateLimits(0, 0)
        self._since: Moment | None = None
        self._up_at = 0.0
        self._sent = self._received = 0
        self._recent: deque[tuple[float, int, int]] = deque()

    def hear(self, notice: notices.CoreEvent) -> None:
        """Take a notice. The protocol and the limits may come before the tunnel is counted."""
        match notice:
            case notices.Tunnels(0):
                self._forget_tunnel()
            case notices.Tunnels() if self._since is None:
                self._since, self._up_at = Moment(), self._clock()
            case notices.ActiveTunnel(protocol) | notices.ConnectedServer(_, protocol):
                self._protocol = protocol
            case notices.TrafficRateLimits():
                self._limits = notice
            case notices.BytesTransferred(sent, received):
                self._sent += sent
                self._received += received
                self._recent.append((self._clock(), sent, received))
                self._forget()
            case _:
                pass

    def correct_since(self) -> None:
        """The wall clock jumped."""
        if self._since is not None:
            self._since.correct()

    def describe(self) -> dict[str, object] | None:
        """The connection for the status: bytes, and bytes per second; None without a tunnel."""
        if self._since is None:
            return None
        self._forget()
        now = self._clock()
        # At least a second: the first count is of a whole one.
        over = max(1.0, min(RATE_SECONDS, now - self._up_at))
        return {
            "protocol": self._protocol or None,
            "since": self._since.tell().astimezone(UTC).isoformat(timespec="milliseconds"),
            "seconds": int(now - self._up_at),
            "sent": self._sent,
            "received": self._received,
            "rate_up": round(sum(sent for _, sent, _ in self._recent) / over),
            "rate_down": round(sum(received for _, _, received in self._recent) / over),
            "limit_up": self._limits.upstream or None,
            "limit_down": self._limits.downstream or None,
        }

    def _forget(self) -> None:
        while self._recent and self._clock() - self._recent[0][0] > RATE_SECONDS:
            self._recent.popleft()
