"""The daemon, with one thing added: it is killed before an effect. Run as `killed_daemon.py DIRECTORY`.

The directory holds `kill`: a token, and on the lines after it the effects that it lives through, each by its name,
state and how many times it came since the token changed. It is killed before the first that is not among them, unless
there is a line "all". And `slept`: how many seconds the machine has slept.
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
    """Look at each effect; die by SIGKILL before one that is new, telling on standard error which it was."""
    directory = Path(sys.argv.pop(1))
    order: list[str] = []
    came: collections.Counter[str] = collections.Counter()
    clocks.read_slept = lambda: float((directory / "slept").read_text())
    # The clock is looked at with each renewal.
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
