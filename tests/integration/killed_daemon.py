"""The daemon, with one thing added: it is killed before its n-th effect. Run as `python killed_daemon.py N ARGS`.

With `N:FILE` its machine sleeps as well, when the file says so (sleepy_daemon.py).
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from psiphon_vpn.linux import clocks
from psiphon_vpn.service import __main__ as daemon
from psiphon_vpn.service import effects
from psiphon_vpn.service.runner import Runner


def main() -> int:
    """Count effects; die by SIGKILL before the n-th, telling on standard error which it was."""
    number, _, slept = sys.argv.pop(1).partition(":")
    left = int(number)
    if slept:
        clocks.read_slept = lambda: float(Path(slept).read_text())
    carry_out = Runner._carry_out

    async def counted(self: Runner, effect: effects.Effect) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.write(2, f"KILLED BEFORE {type(effect).__name__} in {self.model.state}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)
        await carry_out(self, effect)

    Runner._carry_out = counted  # type: ignore[method-assign]
    return daemon.main()


if __name__ == "__main__":
    sys.exit(main())
