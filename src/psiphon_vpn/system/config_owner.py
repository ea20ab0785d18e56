# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Owner and mode of the configuration: psiphon-user's, 600, in a directory of root's that everybody may enter (R12).

An editor that root uses can change the file's owner to root; then the service, which runs as psiphon-user, cannot read
it. Root's commands restore the owner. They refuse a file that others could have written: it would steer the tunnel.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from psiphon_vpn.system.platform import Account

MODE: Final = 0o600
DIRECTORY_MODE: Final = 0o755
_WRITABLE_BY_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH


def restore_owner(path: Path, account: Account, *, root_uid: int = 0) -> bool:
    """Give the configuration to the service, if only root or the service can have written it.

    Args:
        path: the file; a link is left alone.
        account: psiphon-user and psiphon-group.
        root_uid: root's, except in tests without root.

    Returns:
        Whether something was changed.

    Raises:
        OSError: it cannot be changed.
    """
    changed = False
    try:
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        above = os.fstat(directory)
        if above.st_uid != root_uid or above.st_mode & _WRITABLE_BY_OTHERS:
            return False  # others could put another file there at any moment
        if stat.S_IMODE(above.st_mode) & 0o555 != 0o555:
            os.fchmod(directory, DIRECTORY_MODE)
            changed = True
        return _restore_file(path.name, directory, account, root_uid) or changed
    finally:
        os.close(directory)


def keep_for_root(directory: Path) -> None:
    """Give root what stays of the configuration when psiphon-user goes: its number may become somebody else's.

    Args:
        directory: of the configuration; root's, so that nobody else can exchange what is in it.

    Raises:
        OSError: it cannot be changed.
    """
    if not directory.is_dir() or directory.is_symlink():
        return
    owner = directory.lstat()
    for path in directory.rglob("*"):
        os.lchown(path, owner.st_uid, owner.st_gid)


def _restore_file(name: str, directory: int, account: Account, root_uid: int) -> bool:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        descriptor = os.open(name, flags, dir_fd=directory)
    except FileNotFoundError:
        return False
    except OSError as error:
        if os.path.islink(f"/proc/self/fd/{directory}/{name}"):
            return False
        raise error from None
    try:
        found = os.fstat(descriptor)
        if (
            not stat.S_ISREG(found.st_mode)
            or found.st_uid not in {root_uid, account.uid}
            or found.st_mode & _WRITABLE_BY_OTHERS
        ):
            return False
        if (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (account.uid, account.gid, MODE):
            return False
        # The mode first, so that root's group can never read what belongs to psiphon-user.
        os.fchmod(descriptor, MODE)
        os.fchown(descriptor, account.uid, account.gid)
        return True
    finally:
        os.close(descriptor)
