# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""File operations of the store: copy and change owner, safe against crashes and other users."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from psiphon_vpn.core.flaws import CoreFlaw, CoreFlawError
from psiphon_vpn.core.manifest import MAX_CORE_SIZE
from psiphon_vpn.i18n import _

_CHUNK: Final = 1 << 20


def _unreadable(path: Path, why: str) -> CoreFlawError:
    text = _("{path}: {why}").format(path=path, why=why)
    return CoreFlawError(
        CoreFlaw.UNREADABLE, _("The tunnel program is not installed"), text, _("Give the path of the program itself.")
    )


def _open_source(path: Path) -> int:
    """Open a regular file. Its type is checked first, since opening a device can have effects."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise _unreadable(path, _("it is no regular file"))
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _unreadable(path, _("it is no regular file"))
    return descriptor


def copy_in(path: Path, target: Path) -> None:
    """Copy into a new file that only root can access. Only the copy is examined.

    Raises:
        CoreFlawError: UNREADABLE or TOO_LARGE.
        OSError: the copy cannot be written.
    """
    with os.fdopen(_open_source(path), "rb") as source:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as copy:
            total = 0
            while True:
                try:
                    chunk = source.read(_CHUNK)
                except OSError as error:
                    raise _unreadable(path, error.strerror or str(error)) from error
                if not chunk:
                    break
                total += len(chunk)
                if total > MAX_CORE_SIZE:
                    raise CoreFlawError(
                        CoreFlaw.TOO_LARGE,
                        _("The tunnel program is not installed"),
                        _("{path} is larger than a tunnel program can be").format(path=path),
                        _("Give the path of the program itself."),
                    )
                copy.write(chunk)
            copy.flush()
            os.fsync(copy.fileno())


def give_away(path: Path, *, uid: int, gid: int) -> None:
    """Give a verified program to its user. From here on that user could change it; every start checks it again."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fchown(descriptor, uid, gid)
        os.fchmod(descriptor, 0o755)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
