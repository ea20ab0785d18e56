# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon, killed before an effect. Run as `killed_daemon.py DIRECTORY`.

The directory has two files. `kill`: a token, and on the lines after it the effects that the daemon survives, each by
its name, its state and how many times it came since the token changed. The daemon is killed before the first other
effect, unless there is a line "all". `slept`: how many seconds the machine has slept.
"""

from __future__ import annotations

import collections
import os
import signal
import sys
from pathlib import Path

from psiphon_vpn.linux import clocks
from psiphon_vpn.policy import names
from psiphon_vpn.service import __main__ as daemon
from psiphon_vpn.service import effects
from psiphon_vpn.service.runner import Runner


def main() -> int:
    """Look at each effect; die by SIGKILL before a new one, and say on standard error which."""
    directory = Path(sys.argv.pop(1))
    order: list[str] = []
    came: collections.Counter[str] = collections.Counter()
    clocks.read_slept = lambda: float((directory / "slept").read_text())
    # Each renewal reads the clock.
    names.LEASE_RENEW_SECONDS = 0.4  # type: ignore[assignment,misc]
    carry_out = Runner.carry_out

    async def counted(self: Runner, effect: effects.Effect) -> None:
        nonlocal order
        if (now := (directory / "kill").read_text().splitlines()) != order:
            order = now
            came.clear()
        name = f"{type(effect).__name__} in {self.model.state}"
        came[name] += 1
        if f"{name} {came[name]}" not in order and "all" not in order:
            os.write(2, f"KILLED BEFORE {name} {came[name]}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)
        await carry_out(self, effect)

    Runner.carry_out = counted  # type: ignore[method-assign]
    return daemon.main()


if __name__ == "__main__":
    sys.exit(main())
