# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Versions of something: a directory for each, named by a SHA-256, and links to the current and the previous one.

Nothing is changed in place. A version is prepared in a directory that only root can enter, moved into place and linked
to, by rename(2), each step durable before the next. Whenever this is interrupted, the version in use stays in use,
complete and valid.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from psiphon_vpn.system.tree_changes import remove_path
from psiphon_vpn.tree_removal import remove_tree

SHA256: Final = re.compile(r"[0-9a-f]{64}")
_STAGING: Final = ".staging"
_NEW_LINK: Final = ".link"
_LOCK: Final = ".lock"
_WRITABLE_BY_OTHERS: Final = 0o022


class OwnerError(ValueError):
    """A file or directory could have been written by others. The text is the reason, in English."""


class BusyError(Exception):
    """Another process is changing these versions."""


class NoPreviousError(Exception):
    """There is no version to go back to."""


def check_owner(status: os.stat_result, *, owner: int, name: str) -> None:
    """Accept a file or directory that belongs to `owner` and that nobody else can write to; raises OwnerError."""
    if status.st_uid != owner:
        raise OwnerError(f"{name} does not belong to root")
    if stat.S_IMODE(status.st_mode) & _WRITABLE_BY_OTHERS:
        raise OwnerError(f"{name} can be written by others than root")


def read_owned(name: str, *, directory: int, owner: int, high: int) -> bytes:
    """Read a small file in an open directory, if nobody but `owner` can have written it.

    Args:
        name: of the file.
        directory: descriptor of its directory.
        owner: uid that must own both.
        high: greatest size in bytes.

    Raises:
        FileNotFoundError: there is no such file.
        OwnerError: it cannot be trusted or read, or is too large.
    """
    check_owner(os.fstat(directory), owner=owner, name="its directory")
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise OwnerError(error.strerror or str(error)) from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OwnerError("it is no regular file")
        check_owner(status, owner=owner, name=name)
        content = file.read(high + 1)
    if len(content) > high:
        raise OwnerError("it is too large")
    return content


def write_synced(path: Path, content: bytes, *, mode: int) -> None:
    """Write a new file, durable when this returns."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fchmod(file.fileno(), mode)
        os.fsync(file.fileno())


def sync_directory(directory: Path) -> None:
    """Make renames and new names durable (fsync(2): a file's own fsync does not)."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Versions:
    """The versions in a directory.

    Args:
        directory: root's; made if it does not exist.
        root_uid: uid that must own it: root, except in tests without root.
    """

    def __init__(self, directory: Path, *, root_uid: int = 0) -> None:
        self._directory = directory
        self._root_uid = root_uid
        self._locked = False
        self.current = directory / "current"
        """Link to the version in use."""
        self.previous = directory / "previous"
        """Link to the one before."""

    @property
    def locked(self) -> bool:
        """Whether this process keeps others out."""
        return self._locked

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep others out, and remove what an interrupted change left behind.

        Raises:
            BusyError: another process changes the versions.
            OwnerError: others than root own the directory or can write to it.
            OSError: the disk.
        """
        for directory in (self._directory.parent, self._directory):
            if not directory.is_dir():
                directory.mkdir(parents=True)
                directory.chmod(0o755)  # whatever the umask: psiphon-user needs access
        check_owner(self._directory.stat(), owner=self._root_uid, name=str(self._directory))
        descriptor = os.open(self._directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BusyError from error
            self.clean()
            self._locked = True
            yield
        finally:
            self._locked = False
            os.close(descriptor)

    def make_staging(self) -> Path:
        """A new directory that only root can enter, for the parts of a version; removed by `drop_staging`."""
        assert self._locked, "only while others are kept out"
        staging = self._directory / _STAGING
        staging.mkdir(mode=0o700)
        return staging

    def drop_staging(self) -> None:
        """Remove what is left of the staging directory; what cannot be removed now, the next run removes."""
        with contextlib.suppress(OSError):
            remove_tree(self._directory / _STAGING)

    def activate(self, name: str, *, parts: Sequence[str], is_valid: Callable[[Path], bool]) -> bool:
        """Put the staged version into use. After every step a valid one is in use, the old one or the new one.

        Args:
            name: SHA-256 of its content.
            parts: names of its files, in the order in which those of an invalid version are replaced.
            is_valid: whether a version that is there already, under this name, may stay as it is.

        Returns:
            Whether another one was in use before.

        Raises:
            OSError: the disk. The old one is still in use.
        """
        assert self._locked, "only while others are kept out"
        staging, target = self._directory / _STAGING, self._directory / name
        if not target.exists():
            staging.chmod(0o755)
            sync_directory(staging)
            staging.rename(target)
        elif not is_valid(target):
            # Replace file by file, since it may be in use.
            for part in parts:
                (staging / part).replace(target / part)
                sync_directory(target)
        sync_directory(self._directory)
        before = self.find_target(self.current)
        if before != name:
            if before is not None:
                self._link(self.previous, before)
            self._link(self.current, name)
        self.clean()
        return before != name

    def find_previous(self) -> str:
        """The name of the version to go back to; raises NoPreviousError."""
        previous = self.find_target(self.previous)
        if previous is None or previous == self.find_target(self.current):
            raise NoPreviousError
        return previous

    def swap(self) -> None:
        """Swap the current and the previous one.

        Raises:
            NoPreviousError: there is none to go back to.
            OSError: the disk.
        """
        assert self._locked, "only while others are kept out"
        current, previous = self.find_target(self.current), self.find_previous()
        self._link(self.current, previous)
        if current is not None:
            self._link(self.previous, current)

    def forget(self) -> bool:
        """Remove every version; returns whether there was one. Raises OSError."""
        assert self._locked, "only while others are kept out"
        found = [link for link in (self.current, self.previous) if os.path.lexists(link)]
        for link in found:
            link.unlink()
            sync_directory(self._directory)
        self.clean()
        return bool(found)

    @staticmethod
    def find_target(link: Path) -> str | None:
        """The name of the version that a link leads to."""
        try:
            target = os.readlink(link)
        except OSError:
            return None
        return target if SHA256.fullmatch(target) and (link.parent / target).is_dir() else None

    def _link(self, link: Path, target: str) -> None:
        new = self._directory / _NEW_LINK
        new.symlink_to(target)
        new.replace(link)
        sync_directory(self._directory)

    def clean(self) -> None:
        """Remove what no link leads to: leftovers of an interrupted run, and versions older than the previous one."""
        kept = {self.find_target(self.current), self.find_target(self.previous)}
        for entry in self._directory.iterdir():
            if entry.name == _NEW_LINK:
                entry.unlink()
            elif entry.name == _STAGING or (SHA256.fullmatch(entry.name) and entry.name not in kept):
                remove_path(entry)
