# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs the daemon and counts its wake-ups: `python -m psiphon_lab.counted_daemon FILE ARGS`.

FILE contains the number as text. A wake-up is a return of the event loop after a wait; it does not count if an event
was pending already.
"""

from __future__ import annotations

import os
import selectors
import sys
import time
from typing import Any

from psiphon_lab.service_adapter.daemon import run_daemon

LEAST_SLEEP_SECONDS = 0.001


def main() -> int:
    """Run the daemon."""
    descriptor = os.open(sys.argv.pop(1), os.O_WRONLY | os.O_CREAT, 0o644)
    wait = selectors.EpollSelector.select
    count = 0

    def select(self: selectors.EpollSelector, timeout: float | None = None) -> list[Any]:
        nonlocal count
        begin = time.monotonic()
        found = wait(self, timeout)
        if time.monotonic() - begin > LEAST_SLEEP_SECONDS:
            count += 1
            os.pwrite(descriptor, b"%12d" % count, 0)
        return found

    selectors.EpollSelector.select = select  # type: ignore[method-assign,assignment]
    return run_daemon()


if __name__ == "__main__":
    sys.exit(main())
