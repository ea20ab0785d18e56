# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Gives the core a recognisable name in lists of processes.

execve(2) takes the name (comm in proc(5), 15 bytes) from the last part of the path: for /proc/self/fd/15 that is "15".
So root's directory of cores contains a link called psiphon-tunnel-core to a descriptor with a fixed number, and the
sealed copy has that number when it is executed. The link selects nothing: it leads to whatever the process itself has
open under that number. If anything about it is wrong, the core starts without a name.
"""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path
from typing import Final

from psiphon_vpn.versions import OwnerError, check_owner

DESCRIPTOR: Final = 200
"""Far above the descriptors that the daemon uses."""
TARGET: Final = f"/proc/self/fd/{DESCRIPTOR}"


def name_image(image: int, link: Path | None, *, owner: int) -> tuple[int, str]:
    """Give a sealed copy its name, if possible.

    Args:
        image: its descriptor; closed here if another one is returned.
        link: path of the link; None if there is none.
        owner: uid that must own link and directory: root, except in tests without root.

    Returns:
        The descriptor to pass to the child under the same number, and the path to execute there.
    """
    plain = (image, f"/proc/self/fd/{image}")
    if link is None:
        return plain
    try:
        # The lowest free number from there on (fcntl(2)): a descriptor with that number is not touched.
        moved = fcntl.fcntl(image, fcntl.F_DUPFD_CLOEXEC, DESCRIPTOR)
    except OSError:
        return plain
    if moved == DESCRIPTOR and _leads_there(link, owner=owner):
        os.close(image)
        return moved, str(link)
    os.close(moved)
    return plain


def _leads_there(link: Path, *, owner: int) -> bool:
    try:
        check_owner(link.parent.stat(), owner=owner, name="its directory")
        found = link.lstat()
        if not stat.S_ISLNK(found.st_mode) or found.st_uid != owner or os.readlink(link) != TARGET:
            return False
        # Follow it once: a mount with "nosymfollow" (mount(8)) would not let it be executed either.
        return os.path.samestat(link.stat(), os.fstat(DESCRIPTOR))
    except (OSError, OwnerError):
        return False
