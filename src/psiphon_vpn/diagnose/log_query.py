# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Which entries of systemd's journal are about the service, as matches for journalctl(1). Pure."""

from __future__ import annotations

from typing import Final

from psiphon_vpn.system.layout import SERVERS_UNIT, SLEEP_UNIT, UNITS

REPEATED_UNITS: Final = (SERVERS_UNIT, SLEEP_UNIT)
"""Units that start and end again and again, mostly with nothing to say. What systemd says about each run would fill the
log, so only its warnings and errors are asked for."""
_WARNING: Final = 4
"""Its priority, and 0 is the highest (syslog(3))."""


def list_matches() -> list[str]:
    """What the service's units say, and what systemd (process 1) says about them, by fields that nobody can forge.

    As `--unit` does, but that treats all units alike (journalctl(1), systemd.journal-fields(7)).
    """
    matches: list[str] = []
    for unit in UNITS:
        about = ["_PID=1", f"UNIT={unit}"]
        if unit in REPEATED_UNITS:
            about += [f"PRIORITY={number}" for number in range(_WARNING + 1)]
        matches += ["+", f"_SYSTEMD_UNIT={unit}", "+", *about, "+", "_UID=0", f"COREDUMP_UNIT={unit}"]
    return matches[1:]
