"""The installed cores: a directory for each, named by its SHA-256, and links to the current and the previous one.

Nothing is changed in place. A core is copied into a directory that only root can enter, and the copy is verified. Only
then is it given to psiphon-user, moved into place and linked to, by rename(2). Whenever this is interrupted, the core
in use stays in use, complete and valid. This module imports nothing that could touch the lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from psiphon_vpn.accounts import find_group, find_user
from psiphon_vpn.core.files import copy_in, give_away, sync_directory, write_synced
from psiphon_vpn.core.flaws import CoreFlaw, CoreFlawError
from psiphon_vpn.core.image import RecordedCore, check_recorded
from psiphon_vpn.core.manifest import SHA256, Manifest, PinnedCore, load_manifest
from psiphon_vpn.core.record import (
    BINARY_NAME,
    RECORD_NAME,
    CoreRecord,
    RecordError,
    check_owner,
    read_record,
    render_record,
)
from psiphon_vpn.core.verify import compare_order, verify_core
from psiphon_vpn.errors import UserError
from psiphon_vpn.i18n import _
from psiphon_vpn.system.layout import GROUP, USER, Layout
from psiphon_vpn.system.tree_changes import remove_path
from psiphon_vpn.tree_removal import remove_tree

_STAGING: Final = ".staging"
_NEW_LINK: Final = ".link"
_LOCK: Final = ".lock"
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
        warnings: what could not be verified, for the user to decide; translated.
    """

    record: CoreRecord
    old: CoreRecord | None
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
        self._locked = False

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
                _("The record of the tunnel core cannot be used"),
                str(error),
                _("Install the core anew with: sudo psiphon-vpn update"),
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
        with self._disk_errors():
            for directory in (self._layout.data_dir, self._directory):
                if not directory.is_dir():
                    directory.mkdir(parents=True)
                    directory.chmod(0o755)  # whatever the umask: psiphon-user needs access
            try:
                check_owner(self._directory.stat(), owner=self._root_uid, name=str(self._directory))
            except RecordError as error:
                step = _("Find out who changed that, then: chown root: {path}; chmod 755 {path}")
                raise CoreFlawError(
                    CoreFlaw.BAD_RECORD, _what(), str(error), step.format(path=self._directory)
                ) from error
            descriptor = os.open(self._directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise CoreFlawError(
                    CoreFlaw.BUSY, _what(), _("another update is under way"), _("Wait until it has finished.")
                ) from error
            with self._disk_errors():
                self._clean()
            self._locked = True
            yield
        finally:
            self._locked = False
            os.close(descriptor)

    def downloads(self) -> Path:
        """The directory for downloads, which only root can enter; its content is kept for the next attempt."""
        assert self._locked, "only while other installations are kept out"
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
        assert self._locked, "only while other installations are kept out"
        staging = self._directory / _STAGING
        try:
            with self._disk_errors():
                staging.mkdir(mode=0o700)
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
                warnings = (*warnings, _("The revision of this core is not known: only its SHA-256 was checked."))
            with self._disk_errors():
                write_synced(staging / RECORD_NAME, render_record(record), mode=0o644)
            yield StagedCore(record=record, old=old, warnings=warnings)
        finally:
            # A directory that cannot be removed now is removed by the next run.
            with contextlib.suppress(OSError):
                remove_tree(staging)

    def activate(self, staged: StagedCore) -> CoreChange:
        """Put a staged core into use. After every step a valid core is in use, the old one or the new one.

        Raises:
            CoreFlawError: DISK. The old one is still in use.
        """
        assert self._locked, "only while other installations are kept out"
        staging, name = self._directory / _STAGING, staged.record.sha256
        target = self._directory / name
        owner = self.find_owner()
        with self._disk_errors():
            give_away(staging / BINARY_NAME, uid=owner.uid, gid=owner.gid)
            if not target.exists():
                staging.chmod(0o755)
                sync_directory(staging)
                staging.rename(target)
            elif not self._is_valid(target):
                # It was changed since its installation. Replace file by file, since it may be in use.
                for part in (BINARY_NAME, RECORD_NAME):
                    (staging / part).replace(target / part)
                    sync_directory(target)
            sync_directory(self._directory)
            before = self._find_target(self._layout.core_current)
            if before != name:
                if before is not None:
                    self._link(self._layout.core_previous, before)
                self._link(self._layout.core_current, name)
            self._clean()
        return CoreChange(old=staged.old, new=self.check_current(), changed=before != name)

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
            current = self._find_target(self._layout.core_current)
            previous = self._find_target(self._layout.core_previous)
            if previous is None or previous == current:
                raise CoreFlawError(
                    CoreFlaw.NO_PREVIOUS,
                    _("There is nothing to go back to"),
                    _("no core before the present one is kept"),
                    _("The core in use stays in use."),
                )
            check_recorded(self._recorded(self._layout.core_previous / RECORD_NAME))
            old = self._read_old()
            with self._disk_errors():
                self._link(self._layout.core_current, previous)
                if current is not None:
                    self._link(self._layout.core_previous, current)
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
                _("Install psiphon-vpn first."),
            )
        return Owner(uid=user.uid, gid=gid)

    @staticmethod
    def _find_target(link: Path) -> str | None:
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

    def _clean(self) -> None:
        """Remove what no link leads to: leftovers of an interrupted run, and cores older than the previous one."""
        kept = {self._find_target(self._layout.core_current), self._find_target(self._layout.core_previous)}
        for entry in self._directory.iterdir():
            if entry.name == _NEW_LINK:
                entry.unlink()
            elif entry.name == _STAGING or (SHA256.fullmatch(entry.name) and entry.name not in kept):
                remove_path(entry)

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CoreFlawError(
                CoreFlaw.DISK,
                _what(),
                _("{path} cannot be written: {cause}").format(path=self._directory, cause=error.strerror or error),
                _("Make room there, or see what is wrong with the disk; the core in use stays in use."),
            ) from error


def _what() -> str:
    return _("The tunnel core is not installed")
