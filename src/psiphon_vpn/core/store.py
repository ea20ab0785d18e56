# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The installed cores: versions (`versions.py`) named by the SHA-256 of the program.

A core is copied into a directory that only root can enter, and the copy is verified. Only then is it given to
psiphon-user, moved into place and linked to. Whenever this is interrupted, the core in use stays in use, complete and
valid. This module imports nothing that could touch the lock.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from psiphon_vpn.accounts import find_group, find_user
from psiphon_vpn.core.files import copy_in, give_away
from psiphon_vpn.core.flaws import CoreFlaw, CoreFlawError
from psiphon_vpn.core.image import RecordedCore, check_recorded
from psiphon_vpn.core.manifest import Manifest, PinnedCore, load_manifest
from psiphon_vpn.core.record import (
    BINARY_NAME,
    RECORD_NAME,
    CoreRecord,
    RecordError,
    read_record,
    render_record,
)
from psiphon_vpn.core.verify import compare_order, verify_core
from psiphon_vpn.errors import UserError
from psiphon_vpn.i18n import _
from psiphon_vpn.system.layout import GROUP, USER, Layout
from psiphon_vpn.versions import BusyError, NoPreviousError, OwnerError, Versions, write_synced

_DOWNLOADS: Final = ".downloads"


@dataclass(frozen=True, kw_only=True)
class Owner:
    """The owner that binaries get."""

    uid: int
    gid: int


@dataclass(frozen=True, kw_only=True)
class StagedCore:
    """A verified core that is not in use yet.

    Attributes:
        record: its record.
        old: the core in use; None if there is none with a readable record.
        binary: the copy.
        warnings: what could not be verified, for the user to decide; translated.
    """

    record: CoreRecord
    old: CoreRecord | None
    binary: Path
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CoreChange:
    """The result of an installation or a rollback; `changed` is False if that core was in use already."""

    old: CoreRecord | None
    new: CoreRecord
    changed: bool


class CoreStore:
    """The cores below `layout.core_dir`.

    Args:
        layout: the paths.
        owner: the owner that binaries get; None: psiphon-user and psiphon-group, looked up when needed.
        root_uid: uid that must own everything else: root, except in tests without root.
        machine: the processor as uname(2) names it; None: that of this machine.
        manifest: the pinned cores; None: those of this package.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        owner: Owner | None = None,
        root_uid: int = 0,
        machine: str | None = None,
        manifest: Manifest | None = None,
    ) -> None:
        self._layout = layout
        self._directory = layout.core_dir
        self._owner = owner
        self._root_uid = root_uid
        self.machine = os.uname().machine if machine is None else machine
        self.manifest = load_manifest() if manifest is None else manifest
        self._versions = Versions(self._directory, root_uid=root_uid)

    # -- reading --------------------------------------------------------------------------------------------------

    def read_current(self) -> CoreRecord | None:
        """The record of the core in use; None if none is installed.

        Raises:
            CoreFlawError: BAD_RECORD: it exists and cannot be trusted.
        """
        return self._read(self._layout.core_current)

    def read_previous(self) -> CoreRecord | None:
        """The record of the previous core; None if there is none. Raises like `read_current`."""
        return self._read(self._layout.core_previous)

    def check_current(self) -> CoreRecord:
        """Check the core in use as every start does.

        Raises:
            CoreFlawError: what is wrong with it, by `flaw`.
        """
        return check_recorded(self._recorded(self._layout.core_record))

    def _recorded(self, record: Path) -> RecordedCore:
        return RecordedCore(record=record, owner=self._root_uid)

    def _read(self, link: Path) -> CoreRecord | None:
        try:
            descriptor = os.open(link, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            return read_record(descriptor, owner=self._root_uid)
        except FileNotFoundError:
            return None
        except RecordError as error:
            raise CoreFlawError(
                CoreFlaw.BAD_RECORD,
                _("The record of the tunnel program cannot be used"),
                str(error),
                _("Bring another: sudo psiphon-vpn setup --bundle FILE"),
            ) from error
        finally:
            os.close(descriptor)

    # -- changing -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep other installations out, and remove what an interrupted one left behind.

        Raises:
            CoreFlawError: BUSY: another installation is running; BAD_RECORD: others than root own the directory or can
                write to it; DISK.
        """
        with contextlib.ExitStack() as stack:
            with self._disk_errors():
                try:
                    stack.enter_context(self._versions.exclusive())
                except OwnerError as error:
                    step = _("Find out who changed that, then: chown root: {path}; chmod 755 {path}")
                    raise CoreFlawError(
                        CoreFlaw.BAD_RECORD, _what(), str(error), step.format(path=self._directory)
                    ) from error
                except BusyError as error:
                    raise CoreFlawError(
                        CoreFlaw.BUSY, _what(), _("another update is under way"), _("Wait until it has finished.")
                    ) from error
            yield

    def downloads(self) -> Path:
        """The directory for downloads, which only root can enter; its content is kept for the next attempt."""
        assert self._versions.locked, "only while other installations are kept out"
        with self._disk_errors():
            path = self._directory / _DOWNLOADS
            path.mkdir(mode=0o700, exist_ok=True)
            return path

    @contextlib.contextmanager
    def stage(
        self,
        path: Path,
        *,
        source: str,
        expected: PinnedCore | None = None,
        sha256: str | None = None,
        allow_older: bool = False,
    ) -> Iterator[StagedCore]:
        """Copy a file to where nobody else can write, and verify the copy. Only inside `exclusive`.

        Args:
            path: the file. A link is followed, since root typed it; a device or a pipe is not opened.
            source: where it came from, for the record.
            expected: the pinned core that it must be; None: any core of the manifest, or the one with `sha256`.
            sha256: the SHA-256 that it must have as well.
            allow_older: accept a core that is older than the one in use.

        Yields:
            The core, which can be activated inside the block.

        Raises:
            CoreFlawError: the file is refused. Nothing has changed.
        """
        assert self._versions.locked, "only while other installations are kept out"
        try:
            with self._disk_errors():
                staging = self._versions.make_staging()
                copy_in(path, staging / BINARY_NAME)
            record = verify_core(
                staging / BINARY_NAME,
                manifest=self.manifest,
                machine=self.machine,
                source=source,
                expected=expected,
                sha256=sha256,
            )
            old = self._read_old()
            warnings = compare_order(record, old, allow_older=allow_older)
            if record.revision is None:
                warnings = (
                    *warnings,
                    _("The revision of this tunnel program is not known: only its SHA-256 was checked."),
                )
            with self._disk_errors():
                write_synced(staging / RECORD_NAME, render_record(record), mode=0o644)
            yield StagedCore(record=record, old=old, warnings=warnings, binary=staging / BINARY_NAME)
        finally:
            self._versions.drop_staging()

    def activate(self, staged: StagedCore) -> CoreChange:
        """Put a staged core into use. After every step a valid core is in use, the old one or the new one.

        Raises:
            CoreFlawError: DISK. The old one is still in use.
        """
        assert self._versions.locked, "only while other installations are kept out"
        owner = self.find_owner()
        damaged = not self._is_valid(self._directory / staged.record.sha256)
        with self._disk_errors():
            give_away(staged.binary, uid=owner.uid, gid=owner.gid)
            changed = self._versions.activate(
                staged.record.sha256, parts=(BINARY_NAME, RECORD_NAME), is_valid=self._is_valid
            )
        # What takes the place of a damaged file is a change: nothing could start it.
        return CoreChange(old=staged.old, new=self.check_current(), changed=changed or damaged)

    def install_file(
        self, path: Path, *, sha256: str | None = None, source: str | None = None, allow_older: bool = False
    ) -> CoreChange:
        """Install a file: `exclusive`, `stage` and `activate` in one; raises like these."""
        with (
            self.exclusive(),
            self.stage(path, source=source or str(path), sha256=sha256, allow_older=allow_older) as staged,
        ):
            return self.activate(staged)

    def rollback(self) -> CoreChange:
        """Swap the current and the previous core.

        Raises:
            CoreFlawError: NO_PREVIOUS, or a flaw of the previous core. Nothing has changed.
        """
        with self.exclusive():
            try:
                self._versions.find_previous()
            except NoPreviousError as error:
                raise CoreFlawError(
                    CoreFlaw.NO_PREVIOUS,
                    _("There is nothing to go back to"),
                    _("no tunnel program before the present one is kept"),
                    _("The tunnel program in use stays in use."),
                ) from error
            check_recorded(self._recorded(self._layout.core_previous / RECORD_NAME))
            old = self._read_old()
            with self._disk_errors():
                self._versions.swap()
            return CoreChange(old=old, new=self.check_current(), changed=True)

    # -- steps ----------------------------------------------------------------------------------------------------

    def _read_old(self) -> CoreRecord | None:
        # An unreadable record must not prevent the installation of a good core.
        with contextlib.suppress(CoreFlawError):
            return self.read_current()
        return None

    def _is_valid(self, directory: Path) -> bool:
        with contextlib.suppress(CoreFlawError):
            return check_recorded(self._recorded(directory / RECORD_NAME)).sha256 == directory.name
        return False

    def find_owner(self) -> Owner:
        """The owner that binaries get.

        Raises:
            UserError: psiphon-user or psiphon-group does not exist.
        """
        if self._owner is not None:
            return self._owner
        user, gid = find_user(USER), find_group(GROUP)
        if user is None or gid is None:
            raise UserError(
                _what(),
                _("there is no user {user} with the group {group} on this machine").format(user=USER, group=GROUP),
                _("Set this computer up first: sudo psiphon-vpn setup"),
            )
        return Owner(uid=user.uid, gid=gid)

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CoreFlawError(
                CoreFlaw.DISK,
                _what(),
                _("{path} cannot be written: {cause}").format(path=self._directory, cause=error.strerror or error),
                _("Make room there, or see what is wrong with the disk; the tunnel program in use stays in use."),
            ) from error


def _what() -> str:
    return _("The tunnel program is not installed")
