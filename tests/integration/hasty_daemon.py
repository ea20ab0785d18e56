# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon with other constants in the state machine: `python hasty_daemon.py NAME=NUMBER,... ARGS`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from psiphon_vpn.network_managers import systemd_networkd
from psiphon_vpn.service import __main__ as daemon

PURE = ("psiphon_vpn.service.", "psiphon_vpn.network.")


def main() -> int:
    """Run the daemon with these constants; LINKS=DIRECTORY puts networkd's state files elsewhere.

    A constant that is a tuple becomes one of this single number.
    """
    for name in ("runner", "observer"):  # so that every module that decides sees them
        importlib.import_module(f"psiphon_vpn.service.{name}")
    for one in sys.argv.pop(1).split(","):
        name, value = one.split("=")
        if name == "LINKS":
            systemd_networkd.LINKS = Path(value)  # type: ignore[misc]
            continue
        parts = [part for found, part in sys.modules.items() if found.startswith(PURE) and hasattr(part, name)]
        assert parts, name
        for part in parts:
            old = getattr(part, name)
            setattr(part, name, (float(value),) if isinstance(old, tuple) else float(value))
    return daemon.main()


if __name__ == "__main__":
    sys.exit(main())
