# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon, killed before or after a change of traffic control. Run as `filter_killed_daemon.py DIRECTORY`.

The file `kill` in the directory has the number of the change since the start, and "before" or "after"; 0 for none.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Collection
from pathlib import Path

from psiphon_vpn.linux.traffic import NetlinkTraffic, Request
from psiphon_vpn.service import __main__ as daemon


def main() -> int:
    """Count changes; die by SIGKILL before or after one of them, and say on standard error which."""
    number, when = (Path(sys.argv.pop(1)) / "kill").read_text().split()
    change = NetlinkTraffic.change
    came = 0

    def die() -> None:
        os.write(2, f"KILLED {when} change {number}\n".encode())
        os.kill(os.getpid(), signal.SIGKILL)

    def counted(self: NetlinkTraffic, requests: Collection[Request]) -> list[int]:
        nonlocal came
        came += 1
        if came == int(number) and when == "before":
            die()
        answers = change(self, requests)
        if came == int(number):
            die()
        return answers

    NetlinkTraffic.change = counted  # type: ignore[method-assign]
    return daemon.main()


if __name__ == "__main__":
    sys.exit(main())
