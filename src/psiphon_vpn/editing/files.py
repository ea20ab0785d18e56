# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads and replaces the configuration file by the descriptor of its directory; follows no link.

psiphon-user may write to the file, but not to its directory: there, only root can put a name. A new file is written
beside the old one, complete with owner and mode, and takes its place by rename(2). So whenever this is interrupted, one
of the two is there, whole. The old file is never written to, whatever else it is linked to.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from psiphon_vpn.accounts import find_group, find_user
from psiphon_vpn.config_file import FoundFile, read_config
from psiphon_vpn.errors import EXIT_BAD_CONFIG, ConfigError, UserError
from psiphon_vpn.i18n import _
from psiphon_vpn.system.config_owner import MODE
from psiphon_vpn.system.layout import GROUP, USER, Layout
from psiphon_vpn.system.platform import Account

PATIENCE: Final = 30.0
"""Seconds to wait for the end of another change: each takes less than one."""
_PAUSE: Final = 0.05
"""Seconds between two looks."""
_NEW: Final = ".new"
_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a configuration is.

    Attributes:
        path: the file.
        lock: a file in a directory of root's; whoever holds it changes the configuration.
        account: psiphon-user; the file may be its own, and a new one becomes so. None if there is no such user.
        root_uid: root's, except in tests without root.
    """

    path: Path
    lock: Path
    account: Account | None = None
    root_uid: int = 0

    @property
    def trusted_uids(self) -> frozenset[int]:
        """Owners that the file may have."""
        return frozenset({self.root_uid} if self.account is None else {self.root_uid, self.account.uid})


def find_installed(layout: Layout) -> Place:
    """Where the configuration of an installation is, and whose it may be."""
    user, gid = find_user(USER), find_group(GROUP)
    account = None if user is None or gid is None else Account(uid=user.uid, gid=gid)
    return Place(path=layout.config, lock=layout.edit_lock, account=account, root_uid=layout.root.stat().st_uid)


def read_file(place: Place) -> FoundFile | None:
    """The file; None if there is none.

    Raises:
        ConfigError: it cannot be read, or others could have written it or put it there.
    """
    with _open_directory(place) as directory:
        return read_config(place.path, trusted_uids=place.trusted_uids, directory=directory)


class OpenConfig:
    """The configuration while nobody else changes it by this program: read it, then perhaps replace it."""

    def __init__(self, place: Place, directory: int) -> None:
        self._place = place
        self._directory = directory
        self.found = read_config(place.path, trusted_uids=place.trusted_uids, directory=directory)

    @property
    def content(self) -> bytes:
        """What was read; empty if there is no file."""
        return b"" if self.found is None else self.found.content

    def replace(self, content: bytes) -> None:
        """Put a new content in the place of the old one, durable when this returns; owner and mode stay.

        Raises:
            UserError: it cannot be written; the old one is still there.
        """
        name, new = self._place.path.name, self._place.path.name + _NEW
        try:
            self._write(f".{new}", content)
            os.rename(f".{new}", name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
            os.fsync(self._directory)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(f".{new}", dir_fd=self._directory)
            raise UserError(
                _("The configuration was not changed"),
                f"{self._place.path}: {error.strerror or error}",
                _("Make room there, or see what is wrong with the disk; what was there is still there."),
            ) from error

    def _write(self, name: str, content: bytes) -> None:
        # Left behind by a run that was interrupted: only root can have made it.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._directory)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(name, flags, 0o600, dir_fd=self._directory), "wb") as file:
            file.write(content)
            file.flush()
            uid, gid, mode = self._find_owner()
            # The mode first, so that root's group can never read what belongs to psiphon-user.
            os.fchmod(file.fileno(), mode)
            if (uid, gid) != (os.geteuid(), os.getegid()):
                os.fchown(file.fileno(), uid, gid)
            os.fsync(file.fileno())

    def _find_owner(self) -> tuple[int, int, int]:
        if self.found is not None:
            status = self.found.status
            # Nothing but reading and writing is meant for it: no set-uid bit that psiphon-user put there.
            return status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode) & 0o644
        account = self._place.account
        return (os.geteuid(), os.getegid(), MODE) if account is None else (account.uid, account.gid, MODE)


@contextlib.contextmanager
def open_exclusively(place: Place, *, patience: float = PATIENCE) -> Iterator[OpenConfig]:
    """Read the file, and keep other changes by this program out until the end of the block.

    Args:
        place: where it is.
        patience: seconds to wait for the end of another change.

    Raises:
        ConfigError: like `read_file`.
        UserError: another change is under way.
    """
    with _take_lock(place.lock, patience), _open_directory(place) as directory:
        yield OpenConfig(place, directory)


@contextlib.contextmanager
def _take_lock(path: Path, patience: float) -> Iterator[None]:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o600)  # others cannot open it, and so cannot hold it
    except OSError as error:
        raise UserError(_not_changed(), f"{path}: {error.strerror}", _("See what is wrong with this file.")) from error
    try:
        _wait_for_lock(descriptor, patience)
        yield
    finally:
        os.close(descriptor)


def _wait_for_lock(descriptor: int, patience: float) -> None:
    end = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() >= end:
                why, step = _("another command is changing it"), _("Wait until that has finished.")
                raise UserError(_not_changed(), why, step) from error
        time.sleep(_PAUSE)


@contextlib.contextmanager
def _open_directory(place: Place) -> Iterator[int]:
    path = place.path.parent
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise _explain_no_directory(place) from error
    except OSError as error:
        step = _("See what is wrong with this directory.")
        raise ConfigError(place.path, f"{path}: {error.strerror}", step) from error
    try:
        status = os.fstat(descriptor)
        if status.st_uid != place.root_uid or status.st_mode & _OTHERS:
            why = _("other users could put another file there, since they own or may write to {path}").format(path=path)
            step = _("Look at what is in it, then: sudo chown root {path}; sudo chmod 755 {path}").format(path=path)
            raise ConfigError(place.path, why, step)
        yield descriptor
    finally:
        os.close(descriptor)


def _explain_no_directory(place: Place) -> UserError:
    from psiphon_vpn.system.next_step import Need, advise

    layout, path = Layout(), place.path.parent
    why, step = _("there is no directory {path}").format(path=path), _("Make it, or give another file.")
    if path == layout.config_dir:
        advice = advise(Need.SERVICE, layout)
        if advice.why:
            return UserError(_("There is no configuration"), advice.why, advice.step, exit_code=EXIT_BAD_CONFIG)
        step = advice.step
    return ConfigError(place.path, why, step)


def _not_changed() -> str:
    return _("The configuration was not changed")
