# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds out whether this machine can start guests, and if not, why."""

from __future__ import annotations

import os
import platform
import shutil

from psiphon_lab.guest.guest import PROGRAM
from psiphon_lab.guest.image import BUSYBOX
from psiphon_lab.guest.kernels import KEYRING

_PROGRAMS = (PROGRAM, "dpkg-deb", "apt-get", "nft", "ip")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def find_obstacle() -> str | None:
    """Why this machine cannot start a guest, or None if no reason is known."""
    if os.geteuid() != 0:
        return "it needs root"
    if platform.machine() != "x86_64":
        return f"guests are x86_64, and run this machine's own programs, which are {platform.machine()}"
    missing = [name for name in _PROGRAMS if shutil.which(name, path=_PATH) is None]
    missing += [str(path) for path in (BUSYBOX, KEYRING) if not path.exists()]
    if missing:
        return f"not installed: {', '.join(missing)}"
    # A busybox that needs libraries cannot be the first program of a guest (elf(5): an interpreter is named).
    if b"ld-linux" in BUSYBOX.read_bytes()[:4096]:
        return f"{BUSYBOX} is not linked statically"
    return None
