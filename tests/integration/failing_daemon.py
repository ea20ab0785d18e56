# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon, with a failure: `python failing_daemon.py NUMBER ARGS`.

The NUMBERth socket for a question through the tunnel cannot be made (ENOBUFS), once. From SIGUSR1 to SIGUSR2 no
descriptor is left for anything (EMFILE).
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
import sys
from typing import Any

from psiphon_vpn.linux import resolver_probe
from psiphon_vpn.service import __main__ as daemon


class FailingSocket:
    """Replaces the module `socket` there."""

    def __init__(self, number: int) -> None:
        self._left = number

    def __getattr__(self, name: str) -> Any:
        return getattr(socket, name)

    def socket(self, family: int, kind: int) -> socket.socket:
        """Make a socket, or fail."""
        if family == socket.AF_INET:
            self._left -= 1
            if self._left == 0:
                raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
        return socket.socket(family, kind)


def _limit_descriptors(number: int, _frame: object) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Listing the descriptors takes one itself, so this does not list them when none is left.
    soft = max(int(name) for name in os.listdir("/proc/self/fd")) if number == signal.SIGUSR1 else hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, _limit_descriptors)
    signal.signal(signal.SIGUSR2, _limit_descriptors)
    resolver_probe.socket = FailingSocket(int(sys.argv.pop(1)))  # type: ignore[assignment, attr-defined]
    sys.exit(daemon.main())
