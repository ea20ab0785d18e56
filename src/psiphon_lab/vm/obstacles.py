# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds out whether this machine can start virtual computers, and if not, why."""

from __future__ import annotations

import shutil

from psiphon_lab.booted.obstacles import find_obstacle as find_booting_obstacle
from psiphon_lab.vm.qemu import PROGRAM

_PROGRAMS = (PROGRAM, "qemu-img", "mkfs.ext4", "tune2fs", "mkswap", "tc")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def find_obstacle() -> str | None:
    """Why this machine cannot start a virtual computer, or None if no reason is known.

    One begins as a container, in which the service is installed.
    """
    missing = [name for name in _PROGRAMS if shutil.which(name, path=_PATH) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    return find_booting_obstacle()
