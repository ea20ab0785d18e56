"""The daemon, with times of the state machine shortened: `python hasty_daemon.py NAME=SECONDS,... ARGS`."""

from __future__ import annotations

import sys
from pathlib import Path

from psiphon_vpn.service import __main__ as daemon
from psiphon_vpn.service import causes, choice, machine, model


def main() -> int:
    """Run the daemon with these constants; LINKS=DIRECTORY puts networkd's state files elsewhere."""
    for one in sys.argv.pop(1).split(","):
        name, value = one.split("=")
        if name == "LINKS":
            causes.NETWORKD_LINKS = Path(value)  # type: ignore[misc]
            continue
        modules = (model, machine, choice)
        assert any(hasattr(module, name) for module in modules), name
        for module in modules:
            if hasattr(module, name):
                setattr(module, name, float(value))
    return daemon.main()


if __name__ == "__main__":
    sys.exit(main())
