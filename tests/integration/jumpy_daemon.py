# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon with a wall clock that a file sets: `python jumpy_daemon.py FILE ARGS`. SIGUSR1 says that it jumped.

The file has the seconds to add to the machine's own clock, which is never touched. When a clock is set, the kernel
makes the timer's descriptor readable; here the signal does.
"""

from __future__ import annotations

import os
import signal
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from psiphon_vpn.linux import clocks
from psiphon_vpn.service import __main__ as daemon
from psiphon_vpn.service import core_supervision, sleep, timers


def main() -> int:
    """Run the daemon with that clock."""
    path = Path(sys.argv.pop(1))

    def read_wall() -> datetime:
        return datetime.now(UTC) + timedelta(seconds=float(path.read_text()))

    for module in (clocks, core_supervision, timers):
        module.read_wall = read_wall  # type: ignore[attr-defined]
    reported = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    class SignalledTimer(clocks.JumpTimer):
        def __init__(self) -> None:
            super().__init__()
            os.dup2(reported, self.fileno(), inheritable=False)

        def acknowledge(self) -> None:
            os.eventfd_read(reported)

    vars(sleep)["JumpTimer"] = SignalledTimer
    signal.signal(signal.SIGUSR1, lambda _number, _frame: os.eventfd_write(reported, 1))
    return daemon.main()


if __name__ == "__main__":
    sys.exit(main())
