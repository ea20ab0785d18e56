# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks, before the first change, whether an installation or a removal can change everything that it has to.

If /usr is an image (ostree and the like), a file system was remounted read-only after an error, or the disk is full,
the user gets one sentence, and nothing was touched.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from psiphon_vpn.errors import UserError
from psiphon_vpn.i18n import _

SPARE: Final = 4 * 1024 * 1024
"""Bytes in addition to the files: directories, the journal, rounding."""
SPARE_FILES: Final = 64
FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_NO_TMPFILE: Final = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT})
"""Errors of open(2) without O_TMPFILE."""


def check_room(files: Mapping[Path, int], directories: Iterable[Path], *, what: str, removing: bool = False) -> None:
    """Check that files can be written and directories can be changed. Leaves nothing behind.

    Args:
        files: files to write, with their sizes in bytes.
        directories: directories in which something is made or removed.
        what: first part of the error, such as "Nothing was installed".
        removing: ignore a full disk, since removing makes room.

    Raises:
        UserError: one of them cannot, and why.
    """
    for place in sorted({_find_existing(path) for path in (*directories, *(file.parent for file in files))}):
        cause = try_to_write(place)
        if cause is not None and not (removing and cause.errno in FULL):
            raise UserError(what, f"{place}: {cause.strerror}", _advise(cause))
    needed: dict[int, tuple[Path, int, int]] = {}
    for path, size in files.items():
        place = _find_existing(path.parent)
        device = place.stat().st_dev
        _place, total, count = needed.get(device, (place, 0, 0))
        needed[device] = (place, total + size, count + 1)
    for place, total, count in needed.values():
        found = os.statvfs(place)
        # Some file systems do not count files and report 0.
        if found.f_bfree * found.f_frsize < total + SPARE or (found.f_files and found.f_ffree < count + SPARE_FILES):
            why = _("{path}: there is no room; {size} MiB are needed").format(
                path=place, size=-(-(total + SPARE) >> 20)
            )
            raise UserError(what, why, _("Make room there, and run it again."))


def try_to_write(directory: Path) -> OSError | None:
    """Why a directory cannot be written to; None if it can. Tries a file without a name (O_TMPFILE, open(2))."""
    try:
        os.close(os.open(directory, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    except OSError as error:
        if error.errno not in _NO_TMPFILE:
            return error
        try:
            with tempfile.NamedTemporaryFile(prefix=".psiphon-vpn-", dir=directory):
                pass
        except OSError as second:
            return second
    return None


def _find_existing(path: Path) -> Path:
    """The directory, or its nearest existing parent."""
    while not path.is_dir() and path != path.parent:
        path = path.parent
    return path


def _advise(cause: OSError) -> str:
    if cause.errno == errno.EROFS:
        return _(
            "This system keeps that place read-only, so nothing can be installed or removed there. If that is an "
            "error, look for a disk error in 'journalctl -k', or make it writable (mount -o remount,rw)."
        )
    if cause.errno in FULL:
        return _("Make room there, and run it again.")
    return _("Find out what prevents root from writing there (lsattr, mount, SELinux), and run it again.")
