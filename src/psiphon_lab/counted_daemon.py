# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs the daemon and counts its wake-ups: `python -m psiphon_lab.counted_daemon FILE ARGS`.

FILE contains the number as text. A wake-up is the end of a wait of the event loop, however short it was: if something
is to be done already, the loop does not wait. No clock decides it, so a busy machine counts the same.
"""

from __future__ import annotations

import os
import selectors
import sys
from typing import Any

from psiphon_lab.service_adapter.daemon import run_daemon


def main() -> int:
    """Run the daemon."""
    descriptor = os.open(sys.argv.pop(1), os.O_WRONLY | os.O_CREAT, 0o644)
    wait = selectors.EpollSelector.select
    count = 0

    def select(self: selectors.EpollSelector, timeout: float | None = None) -> list[Any]:
        nonlocal count
        if (found := wait(self, 0)) or (timeout is not None and timeout <= 0):
            return found
        found = wait(self, timeout)
        count += 1
        os.pwrite(descriptor, b"%12d" % count, 0)
        return found

    selectors.EpollSelector.select = select  # type: ignore[method-assign,assignment]
    return run_daemon()


if __name__ == "__main__":
    sys.exit(main())
