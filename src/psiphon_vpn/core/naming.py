"""A name for the core that a person recognises in a list of processes.

execve(2) takes the name (comm in proc(5), 15 bytes) from the last part of the path: of /proc/self/fd/15 that is "15".
So root's directory of cores holds a link called psiphon-tunnel-core that leads to a descriptor of a fixed number, and
the sealed copy has that number when it is executed. The link chooses nothing: it leads to what the process itself has
open under the number. Where anything about it is not exactly so, the core starts without a name.
"""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path
from typing import Final

from psiphon_vpn.core.record import RecordError, check_owner

DESCRIPTOR: Final = 200
"""Far above what the daemon has open."""
TARGET: Final = f"/proc/self/fd/{DESCRIPTOR}"


def name_image(image: int, link: Path | None, *, owner: int) -> tuple[int, str]:
    """Give a sealed copy its name, if that can be.

    Args:
        image: its descriptor; the caller's no longer, if another one is returned.
        link: where the link should be; None where nobody made one.
        owner: uid that link and directory must belong to: root's but in tests without root.

    Returns:
        The descriptor to hand down under its own number, and the path to execute there.
    """
    plain = (image, f"/proc/self/fd/{image}")
    if link is None:
        return plain
    try:
        # The lowest free number from there on (fcntl(2)): what has the number already is not touched.
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
        # Followed once: a mount with "nosymfollow" (mount(8)) would not let it be executed either.
        return os.path.samestat(link.stat(), os.fstat(DESCRIPTOR))
    except (OSError, RecordError):
        return False
