# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The journal of an installation: every change of this system, on disk before it is made.

The file is replaced as a whole (rename(2)) and synced with its directory, so it is always one complete record. Changes
are undone from the last to the first, and the journal goes after all of them. A journal that does not say `installed`
belongs to an unfinished operation; every step of it may be repeated.
"""

from __future__ import annotations

import contextlib
import enum
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from psiphon_vpn.errors import UserError, describe_failure
from psiphon_vpn.i18n import _, ngettext
from psiphon_vpn.stored_files import take
from psiphon_vpn.system.change import Change
from psiphon_vpn.system.change_kinds import restore_change
from psiphon_vpn.system.platform import Platform
from psiphon_vpn.system.removal import FilesKept, Turn, is_lock_recorded, sort_by_turn
from psiphon_vpn.system.room import FULL
from psiphon_vpn.system.stage import FORMAT, JournalError, Stage, read_journal
from psiphon_vpn.system.system_changes import UnitStarted
from psiphon_vpn.system.tree_changes import name_temporary, remove_path, write_file

DIRECTORY_MODE: Final = 0o755


class Method(enum.StrEnum):
    """What installs and removes the program's files."""

    CLONE = "clone"
    PACKAGE = "package"


@dataclass(frozen=True, kw_only=True)
class Record:
    """The content of the journal.

    Attributes:
        method: what owns the program's files.
        version: of the program that wrote it last.
        stage: the progress of the operation.
        changes: in the order in which they were recorded.
        had_directory: whether the journal's own directory existed before.
    """

    method: Method
    version: str
    stage: Stage
    changes: tuple[Change, ...] = ()
    had_directory: bool = False


class UndoError(UserError):
    """Some changes could not be undone; the journal still has them.

    Args:
        failures: those changes, with the reasons.
        is_locked: whether this machine is locked according to the kernel.
    """

    def __init__(self, failures: Mapping[Change, str], *, is_locked: bool = False) -> None:
        self.failures = dict(failures)
        first, *others = failures.values()
        count = len(others)
        more = ngettext("and {count} more like this", "and {count} more like this", count).format(count=count)
        super().__init__(
            _("Not everything could be undone, and this machine stays locked")
            if is_locked
            else _("Not everything could be undone"),
            f"{first} ({more})" if others else first,
            _("What was not undone is still recorded: correct it and run the same command again."),
        )


class Journal:
    """The file of the journal."""

    def __init__(self, platform: Platform) -> None:
        self.path = platform.layout.install_journal

    def read(self) -> Record | None:
        """Its content; None if nothing is installed.

        Raises:
            JournalError: it exists and cannot be parsed.
        """
        if (stored := read_journal(self.path)) is None:
            return None
        try:
            return Record(
                method=Method(take(stored, "method", str)),
                version=take(stored, "version", str),
                stage=Stage(take(stored, "stage", str)),
                changes=tuple(restore_change(change) for change in take(stored, "changes", list)),
                had_directory=take(stored, "had_directory", bool),
            )
        except ValueError as error:
            raise JournalError(self.path, str(error)) from error

    def write(self, record: Record) -> None:
        """Replace its content. On return it is on the disk.

        Raises:
            OSError: it cannot be written; its content is unchanged.
        """
        self.path.parent.mkdir(mode=DIRECTORY_MODE, exist_ok=True)
        stored = {
            "format": FORMAT,
            "method": record.method,
            "version": record.version,
            "stage": record.stage,
            "had_directory": record.had_directory,
            "changes": [change.store() for change in record.changes],
        }
        write_file(self.path, json.dumps(stored).encode() + b"\n", mode=0o600, uid=os.geteuid(), gid=os.getegid())
        _sync_directory(self.path.parent)

    def remove(self, record: Record) -> None:
        """Remove the file, and its directory if the installation made it."""
        remove_path(self.path)
        if not record.had_directory:
            remove_path(self.path.parent)
        self.tidy()
        if self.path.parent.parent.is_dir():
            _sync_directory(self.path.parent.parent)

    def tidy(self) -> None:
        """Remove the leftovers of a crash right before the first record, or right after the last."""
        if self.path.parent.is_dir():
            name_temporary(self.path).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it does not exist, or is not empty and so not the installation's
            self.path.parent.rmdir()


class Ledger:
    """An operation on one system: records, applies and undoes changes, and shows each before it is made.

    Args:
        platform: the system to change.
        journal: its journal.
        record: the journal's content, or what it will be.
        say: shows each change, as a command that would do the same.
        dry_run: write nothing and do nothing.
    """

    def __init__(
        self,
        platform: Platform,
        journal: Journal,
        record: Record,
        *,
        say: Callable[[str], None] = lambda _line: None,
        dry_run: bool = False,
    ) -> None:
        self.platform = platform
        self.record = record
        self.dry_run = dry_run
        self.done = 0
        """How many changes were necessary."""
        self._journal = journal
        self._say = say

    def begin(self) -> None:
        """Record that an operation begins, before anything else."""
        self._write(self.record)

    def do(self, *changes: Change) -> None:
        """Record changes in one write, then make those that are not made yet, in order."""
        self.record_only(*changes)
        for change in changes:
            if not change.is_applied(self.platform):
                self._show_change(change)
                if not self.dry_run:
                    change.apply(self.platform)
                    self.done += 1

    def record_only(self, *changes: Change) -> None:
        """Record changes. The state before a change is read once, when the change is first recorded."""
        known = {(change.kind, change.key): change for change in self.record.changes}
        merged = list(self.record.changes)
        for change in changes:
            before = known.get((change.kind, change.key))
            if before is None:
                observed = change.observe(self.platform)
                merged.append(observed)
                known[change.kind, change.key] = observed
        if len(merged) > len(self.record.changes):
            self._write(replace(self.record, changes=tuple(merged)))

    def act(self, command: str, action: Callable[[], object]) -> None:
        """Do something that need not be undone, such as checking a text."""
        self._show(command)
        if not self.dry_run:
            action()

    def count(self, changed: bool) -> None:
        """Count a change that was made outside the ledger."""
        self.done += changed

    def undo(self, changes: Iterable[Change]) -> None:
        """Undo recorded changes, the last one first, and forget them. They may have been undone before.

        A change that cannot be undone stays recorded, and the others are undone nevertheless. But after a unit that
        does not stop, nothing is undone: the machine would be opened under a daemon that closes it again.

        Raises:
            UndoError: something could not be undone.
        """
        unwanted = tuple(changes)
        if failures := self._undo_in_order(reversed(unwanted)):
            raise UndoError(failures)
        self._forget(unwanted)

    def _undo_in_order(self, changes: Iterable[Change], *, stop_early: bool = False) -> dict[Change, str]:
        failures: dict[Change, str] = {}
        for change in changes:
            if (command := change.describe_undo()) is not None:
                self._show(command)
            if self.dry_run:
                continue
            try:
                change.undo(self.platform)
            except Exception as error:  # noqa: BLE001  whatever the error, the other changes are undone nevertheless
                failures[change] = f"{change.key}: {describe_failure(error)}"
                if stop_early or isinstance(change, UnitStarted):
                    break
        return failures

    def _forget(self, changes: Iterable[Change]) -> None:
        gone = {(change.kind, change.key) for change in changes}
        kept = tuple(change for change in self.record.changes if (change.kind, change.key) not in gone)
        if kept and len(kept) < len(self.record.changes):
            self._write(replace(self.record, changes=kept))

    def finish(self) -> None:
        """Record that everything is done, after everything has reached the disk."""
        if not self.dry_run:
            os.sync()
        self._write(replace(self.record, stage=Stage.INSTALLED))

    def remove_all(self) -> None:
        """Undo everything in its turn, then remove the journal. The lock is undone last, completely or not at all.

        Raises:
            UndoError: something could not be undone. The machine is still locked, now and at the next boot.
            OSError: the journal cannot be written, and nothing was undone; or cannot be removed, and everything was.
        """
        try:
            self._write(replace(self.record, stage=Stage.REMOVING))
        except OSError as error:
            # The stage only says which operation did not finish: a full disk must not prevent a removal.
            if error.errno not in FULL:
                raise
        turns = sort_by_turn(self.record.changes, self.platform)
        last = (*turns[Turn.PROGRAM], *turns[Turn.LOCK])
        if self.record.method is Method.PACKAGE or is_lock_recorded(self.record.changes):
            for changes in (turns[Turn.DATA], turns[Turn.SYSTEM]):
                self._raise_for(self._undo_in_order(changes))
            self._undo_or_put_back(last)
        else:  # nothing was ever locked: remove as much as possible
            self._raise_for(self._undo_in_order((*turns[Turn.DATA], *turns[Turn.SYSTEM], *last)))
        if not self.dry_run:
            self._journal.remove(self.record)

    def _undo_or_put_back(self, changes: tuple[Change, ...]) -> None:
        kept = FilesKept(changes, self.platform)
        try:
            self._raise_for(self._undo_in_order(changes, stop_early=True))
        except BaseException:
            kept.put_back()
            raise

    def _raise_for(self, failures: Mapping[Change, str]) -> None:
        if failures:
            locked = None
            with contextlib.suppress(Exception):  # reported only if it can be read
                locked = self.platform.kernel.is_locked()
            raise UndoError(failures, is_locked=locked is True)

    def _show_change(self, change: Change) -> None:
        if command := change.describe():
            self._show(command)

    def _show(self, command: str) -> None:
        with contextlib.suppress(OSError):  # the terminal may be gone: closing the lock ends remote sessions
            self._say(f"[#] {command}")

    def _write(self, record: Record) -> None:
        self.record = record
        if not self.dry_run:
            self._journal.write(record)


def open_ledger(
    platform: Platform,
    *,
    method: Method,
    version: str,
    say: Callable[[str], None] = lambda _line: None,
    dry_run: bool = False,
) -> Ledger:
    """The ledger of an installation that begins, continues after a crash, or is repeated.

    Raises:
        JournalError: the journal cannot be read.
    """
    journal = Journal(platform)
    found = journal.read()
    if found is None:
        record = Record(
            method=method,
            version=version,
            stage=Stage.INSTALLING,
            had_directory=_has_content(journal.path),
        )
    else:
        record = replace(found, method=method, version=version, stage=Stage.INSTALLING)
    return Ledger(platform, journal, record, say=say, dry_run=dry_run)


def _has_content(path: Path) -> bool:
    """Whether the journal's directory existed before. A crash before the first record leaves an empty one."""
    directory, temporary = path.parent, name_temporary(path).name
    return directory.is_dir() and any(entry.name != temporary for entry in directory.iterdir())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
