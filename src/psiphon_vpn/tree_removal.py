# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Removes a directory tree that somebody else may have made: of any depth and width, in constant memory.

A compromised core can leave any tree in its directories, and root removes it. So this code does not recurse, uses no
path longer than a name, follows no link, and opens only a few descriptors: it moves deep directories up to the top
(renameat(2) within one file system moves a whole tree at once) and removes them from there.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

MAX_REMOVED: Final = 10_000_000
"""Entries; beyond this, somebody must be creating new ones as fast as they are removed."""
MAX_NESTED: Final = 50
"""Nested directories that cannot be moved up: those of an overlay's lower layer, of a few levels."""
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MOVED: Final = ".removing-{}"
_TAKEN: Final = frozenset({errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR})


def remove_tree(path: Path, *, limit: int = MAX_REMOVED) -> None:
    """Remove a directory with everything in it; if something cannot be removed, all the rest.

    Args:
        path: the directory; no link is followed, neither as the directory nor in it.
        limit: entries, after which it gives up.

    Raises:
        FileNotFoundError: there is no such directory.
        OSError: the first entry that could not be removed, with its name. Mounts in it are not touched.
    """
    parent = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with _opened(path.name, parent) as directory:
            _Removal(os.fstat(directory).st_dev, limit).empty(directory)
        os.rmdir(path.name, dir_fd=parent)
    finally:
        os.close(parent)


class _Removal:
    """One removal: on one file system, and bounded."""

    def __init__(self, device: int, limit: int) -> None:
        self._device = device
        self._left = limit
        self._names = map(_MOVED.format, itertools.count())

    def empty(self, top: int, nested: int = 0) -> None:
        """Remove everything in a directory; raises the first failure when nothing more can be removed."""
        while True:
            progress, failure = False, None
            with os.scandir(top) as entries:
                for entry in entries:
                    try:
                        self._remove(top, entry, nested)
                        progress = True
                    except OSError as error:
                        failure = failure or error
            if not progress:
                if failure is not None:
                    raise failure
                return

    def _remove(self, top: int, entry: os.DirEntry[str], nested: int) -> None:
        self._count(entry.name)
        if not entry.is_dir(follow_symlinks=False):
            os.unlink(entry.name, dir_fd=top)
            return
        with _opened(entry.name, top) as directory:
            if os.fstat(directory).st_dev != self._device:
                raise OSError(errno.EBUSY, "something is mounted there", entry.name)
            self._flatten(directory, top, nested)
        os.rmdir(entry.name, dir_fd=top)

    def _flatten(self, directory: int, top: int, nested: int) -> None:
        """Remove the files in a directory, and move its directories to the top."""
        failure = None
        with os.scandir(directory) as entries:
            for entry in entries:
                self._count(entry.name)
                try:
                    if entry.is_dir(follow_symlinks=False):
                        self._move(entry.name, directory, top)
                    else:
                        os.unlink(entry.name, dir_fd=directory)
                except OSError as error:
                    failure = failure or error
        if failure is None:
            return
        if failure.errno != errno.EXDEV or nested >= MAX_NESTED:
            raise failure
        # Directories of an overlay's lower layer cannot be moved (kernel documentation, overlayfs, redirect_dir).
        self.empty(directory, nested + 1)

    def _move(self, name: str, directory: int, top: int) -> None:
        for _attempt in range(1000):
            try:
                _rename(name, directory, next(self._names), top)
            except OSError as error:
                if error.errno not in _TAKEN:
                    raise
            else:
                return
        raise OSError(errno.EBUSY, "somebody goes on writing there", name)

    def _count(self, name: str) -> None:
        self._left -= 1
        if self._left < 0:
            raise OSError(errno.EBUSY, "there is more than can be removed at once", name)


def _rename(name: str, source: int, new: str, target: int) -> None:
    try:
        os.rename(name, new, src_dir_fd=source, dst_dir_fd=target)
    except PermissionError:
        # Moving a directory changes its "..", so its owner needs write permission.
        _allow(name, source)
        os.rename(name, new, src_dir_fd=source, dst_dir_fd=target)


@contextlib.contextmanager
def _opened(name: str, parent: int) -> Iterator[int]:
    """Open a directory, whatever its mode; a link is refused."""
    try:
        descriptor = os.open(name, _DIRECTORY, dir_fd=parent)
    except PermissionError:
        _allow(name, parent)
        descriptor = os.open(name, _DIRECTORY, dir_fd=parent)
    try:
        if os.fstat(descriptor).st_mode & stat.S_IRWXU != stat.S_IRWXU:
            os.fchmod(descriptor, 0o700)
        yield descriptor
    finally:
        os.close(descriptor)


def _allow(name: str, parent: int) -> None:
    """Give the owner access to a directory. By /proc, since fchmodat(2) would follow a link that replaces it."""
    descriptor = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        os.chmod(f"/proc/self/fd/{descriptor}", 0o700)
    finally:
        os.close(descriptor)
