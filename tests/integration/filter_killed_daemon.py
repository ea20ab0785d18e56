"""The daemon, killed around a change of traffic control. Run as `filter_killed_daemon.py DIRECTORY`.

The directory holds `kill`: which change since the start it is, and "before" or "after"; 0 for none.
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
    """Count changes; die by SIGKILL around one of them, telling on standard error which it was."""
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
