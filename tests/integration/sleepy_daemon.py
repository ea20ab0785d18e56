# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon on a machine that sleeps when a file says so. Run as `python sleepy_daemon.py FILE ARGS`.

The file has the seconds that the machine has slept since its start, which is CLOCK_BOOTTIME minus CLOCK_MONOTONIC. The
real clocks cannot be moved: they belong to the whole machine.
"""

from __future__ import annotations

import sys
from pathlib import Path

from psiphon_vpn.linux import clocks
from psiphon_vpn.service import __main__ as daemon


def main() -> int:
    """Run the daemon with that clock."""
    path = Path(sys.argv.pop(1))
    clocks.read_slept = lambda: float(path.read_text())
    return daemon.main()


if __name__ == "__main__":
    sys.exit(main())
