# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""`install`, `setup` and `uninstall`, and the two commands that packages call: the order of their steps.

A clone's installation puts the program's files on the machine, journaled, and then sets it up; a package's files are
already there. Neither those nor the units do anything by themselves (`acting`). The drop-ins, by which systemd starts
the units at boot, are written right after the rules: a machine that is switched off before that boots as it was, and
locked from then on.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Final, Protocol

from psiphon_vpn import __version__
from psiphon_vpn.errors import UserError, describe_failure
from psiphon_vpn.i18n import _
from psiphon_vpn.system import released
from psiphon_vpn.system.change import Change, locate
from psiphon_vpn.system.compiling import compile_installed
from psiphon_vpn.system.config_owner import keep_for_root
from psiphon_vpn.system.configure import (
    close_lock,
    enable_for_boot,
    find_running,
    prepare,
    record_lock,
    relock,
    start_service,
)
from psiphon_vpn.system.journal import Journal, Ledger, Method, Record, UndoError, open_ledger
from psiphon_vpn.system.layout import Layout
from psiphon_vpn.system.platform import Platform
from psiphon_vpn.system.removal import is_lock_recorded
from psiphon_vpn.system.room import check_room
from psiphon_vpn.system.stage import Stage
from psiphon_vpn.system.tree_changes import DirectoryMade, FileWritten

Say = Callable[[str], None]
OWN_DIRECTORIES: Final = ("/usr/lib/psiphon-vpn",)
"""Removed with all their content; any other directory only if it is empty, and if the installation made it."""


class Payload(Protocol):
    """One file of the program from `payload.collect_payload`; it belongs to root."""

    @property
    def path(self) -> str:
        """Absolute, on the target."""

    @property
    def content(self) -> bytes:
        """All of it."""

    @property
    def mode(self) -> int:
        """Permission bits."""


@dataclass(frozen=True, kw_only=True)
class InstallResult:
    """The result of an installation.

    Attributes:
        changes: how many changes were necessary.
        repeated: whether it was installed already.
        closed: whether the lock is closed now.
    """

    changes: int
    repeated: bool
    closed: bool


def install_clone(
    platform: Platform,
    payload: Sequence[Payload],
    acting: Sequence[Payload],
    *,
    say: Say,
    bring: Callable[[], bool] | None = None,
    dry_run: bool = False,
) -> InstallResult:
    """Put the program on this machine, lock it and start the service.

    Args:
        platform: the system to change.
        payload: the program's files.
        acting: the files that act on the system.
        say: shows each change before it is made.
        bring: installs what the tunnel needs and returns whether that is different now; called before the lock closes.
        dry_run: only show.

    Raises:
        UserError: it failed. Either nothing was changed, or the machine is locked; it says which.
    """
    ledger = open_ledger(platform, method=Method.CLONE, version=__version__, say=say, dry_run=dry_run)
    repeated = Journal(platform).read() is not None
    if not dry_run:
        layout = platform.layout
        files = {layout.root / file.path.lstrip("/"): len(file.content) for file in payload}
        # Byte code is about as large as its source.
        files |= {path.with_suffix(".pyc"): size for path, size in files.items() if path.suffix == ".py"}
        check_room(files, _list_own_places(layout), what=_("Nothing was installed"))
    with _Recovering(ledger):
        ledger.begin()
        record_lock(ledger)
        ledger.do(*_list_changes(platform, sorted(payload, key=lambda file: file.path)))
        _compile(ledger)
        _put_in_place(ledger, acting)
        _bring(ledger, bring)
        _remove_unwanted(ledger, {file.path for file in (*payload, *acting)})
        _lock_and_start(ledger)
    return InstallResult(changes=ledger.done, repeated=repeated, closed=True)


def set_up(
    platform: Platform,
    acting: Sequence[Payload],
    *,
    say: Say,
    bring: Callable[[], bool] | None = None,
    dry_run: bool = False,
) -> InstallResult:
    """Lock a machine on which the program is already, and start the service.

    Args: as `install_clone`.

    Raises:
        UserError: as `install_clone`.
    """
    found = Journal(platform).read()
    method = Method.PACKAGE if found is None else found.method
    ledger = open_ledger(platform, method=method, version=__version__, say=say, dry_run=dry_run)
    if not dry_run:
        check_room({}, _list_own_places(platform.layout), what=_("Nothing was set up"))
    with _Recovering(ledger):
        ledger.begin()
        record_lock(ledger)
        _compile(ledger)
        _put_in_place(ledger, acting)
        _bring(ledger, bring)
        _lock_and_start(ledger)
    return InstallResult(changes=ledger.done, repeated=found is not None, closed=True)


def _compile(ledger: Ledger) -> None:
    """In the program's own directory, which is removed whole."""
    layout = ledger.platform.layout
    ledger.act(_("compile the program"), lambda: compile_installed(layout))


def _bring(ledger: Ledger, bring: Callable[[], bool] | None) -> None:
    if bring is not None:
        ledger.act(_("install the tunnel program and the list of servers"), lambda: ledger.count(bring()))


def _put_in_place(ledger: Ledger, acting: Iterable[Payload]) -> None:
    """Everything that acts: accounts and rules, then the drop-ins by which systemd starts the lock at boot."""
    platform = ledger.platform
    first, second = _split(acting)
    ledger.do(*_list_changes(platform, first))
    prepare(ledger)
    ledger.do(*_list_changes(platform, second))


def _lock_and_start(ledger: Ledger) -> None:
    # Without changes a running service need not be disturbed.
    undisturbed = ledger.done == 0
    renew = frozenset() if undisturbed else find_running(ledger.platform)
    close_lock(ledger, undisturbed=undisturbed)
    start_service(ledger, renew=renew, undisturbed=undisturbed)
    ledger.finish()


def configure_package(platform: Platform, acting: Sequence[Payload], *, say: Say, close: bool) -> InstallResult:
    """Configure a package whose files are in place on a machine that was set up before: at every upgrade.

    Args:
        platform: the system to change.
        acting: the files that act on the system.
        say: shows each change before it is made.
        close: whether the lock closes now; it closes at the next boot in any case.

    Raises:
        UserError: as `install_clone`.
    """
    ledger = open_ledger(platform, method=Method.PACKAGE, version=__version__, say=say)
    found = Journal(platform).read()
    # Files of an earlier clone's installation belong to the package now.
    ledger.record = _without_files(ledger.record, platform)
    check_room({}, _list_own_places(platform.layout), what=_("Nothing was set up"))
    with _Recovering(ledger):
        ledger.begin()
        record_lock(ledger)
        _put_in_place(ledger, acting)
        _remove_unwanted(ledger, {file.path for file in acting})
        if close:
            renew = find_running(platform)
            close_lock(ledger)
            start_service(ledger, renew=renew)
        else:
            enable_for_boot(ledger)
        ledger.finish()
    return InstallResult(changes=ledger.done, repeated=found is not None, closed=close)


def uninstall(platform: Platform, *, say: Say, dry_run: bool = False) -> bool:
    """Undo everything in the journal; the network opens last.

    The configuration stays if a package manager has the program, which has an act of its own for it (purge).

    Returns:
        Whether there was anything to undo.

    Raises:
        JournalError: the journal cannot be read. Nothing was changed.
        UndoError: something could not be undone. The journal still has it.
    """
    journal = Journal(platform)
    record = journal.read()
    if record is None:
        if not dry_run:
            journal.tidy()
        return False
    if not dry_run:
        places = {locate(platform, change.path).parent for change in record.changes if hasattr(change, "path")}
        check_room({}, {*places, *_list_own_places(platform.layout)}, what=_("Nothing was removed"), removing=True)
    if record.method is Method.PACKAGE:
        record = _without_configuration(record, platform)
        if not dry_run:
            keep_for_root(platform.layout.config_dir)
    Ledger(platform, journal, record, say=say, dry_run=dry_run).remove_all()
    if not dry_run:
        released.clear(platform)
    return True


def _list_own_places(layout: Layout) -> tuple[Path, ...]:
    """The directories of accounts, configuration, rules, data and the journal."""
    return (
        layout.root / "etc",
        layout.config_dir,
        layout.rules_dir,
        layout.core_dir,
        layout.install_journal.parent,
        layout.unit_dir,
    )


def read_record(platform: Platform) -> Record | None:
    """What the journal says; None if nothing was set up here. Raises JournalError."""
    return Journal(platform).read()


def find_interruption(platform: Platform) -> str | None:
    """A sentence about an unfinished operation; None if there is none. Raises JournalError."""
    record = Journal(platform).read()
    if record is None or record.stage is Stage.INSTALLED:
        return None
    if record.stage is Stage.REMOVING:
        return _("The removal did not finish. Continue with: sudo psiphon-vpn uninstall")
    return _(
        "The installation did not finish. Continue with: sudo psiphon-vpn setup, or undo it: sudo psiphon-vpn uninstall"
    )


class _Recovering:
    """Undoes an installation that fails before the lock closes; says what holds if it fails later."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is None or self._ledger.dry_run:
            return
        if is_lock_recorded(self._ledger.record.changes):
            if isinstance(error, Exception):
                raise UserError(
                    _("The installation did not finish, and this machine stays locked")
                    if self._is_locked()
                    else _("The installation did not finish, and this machine is not locked before its next boot"),
                    describe_failure(error),
                    _("Run the same command again, or undo it with: sudo psiphon-vpn uninstall"),
                ) from error
            return
        next_step = error.next_step if isinstance(error, UserError) else _("Correct that, and run it again.")
        what = _("The installation did not work, and everything is as it was before")
        try:
            if self._is_recorded():
                self._ledger.remove_all()
        except (UndoError, OSError):
            # The cause of the failure comes first; what is left is recorded.
            what = _("The installation did not work, and not everything could be undone")
            next_step = _("Correct that, and then run it again, or undo it with: sudo psiphon-vpn uninstall")
        if isinstance(error, Exception):
            raise UserError(what, describe_failure(error), next_step) from error

    def _is_recorded(self) -> bool:
        """Whether the journal has anything to undo. It has not if even its first write failed."""
        journal = Journal(self._ledger.platform)
        if journal.read() is not None:
            return True
        with contextlib.suppress(OSError):
            journal.tidy()
        return False

    def _is_locked(self) -> bool:
        """Whether the kernel is locked. The failed step may have been the locking, so this tries to lock once more."""
        platform = self._ledger.platform
        with contextlib.suppress(Exception):
            if platform.kernel.is_locked() is True:
                return True
        with contextlib.suppress(Exception):
            relock(platform)
            return platform.kernel.is_locked() is True
        return False


def _split(acting: Iterable[Payload]) -> tuple[list[Payload], list[Payload]]:
    """The files that come before the rules, and those of systemd, which come after them. The order stays."""
    systemd = PurePosixPath("/usr/lib/systemd")
    first: list[Payload] = []
    second: list[Payload] = []
    for file in acting:
        (second if PurePosixPath(file.path).is_relative_to(systemd) else first).append(file)
    return first, second


def _list_changes(platform: Platform, payload: Iterable[Payload]) -> Iterator[Change]:
    """Missing directories, and the files."""
    seen: set[str] = set()
    for file in payload:
        for parent in reversed(PurePosixPath(file.path).parents):
            path = str(parent)
            if path in seen or path == "/":
                continue
            seen.add(path)
            if path in OWN_DIRECTORIES:
                yield DirectoryMade(path=path)
            elif not (platform.layout.root / path.lstrip("/")).is_dir():
                yield DirectoryMade(path=path, shared=True)
        yield FileWritten(path=file.path, mode=file.mode, content=file.content)


def _remove_unwanted(ledger: Ledger, wanted: set[str]) -> None:
    """Undo the files of an earlier version that this one does not have."""
    layout = ledger.platform.layout
    rendered = {layout.boot_rules, layout.drop_rules, layout.guard_rules, layout.frame_rules, layout.config}
    rendered |= {layout.readers, layout.bridges, layout.bridge_rules}
    wanted = wanted | {"/" + str(path.relative_to(layout.root)) for path in rendered}
    unwanted = [
        change for change in ledger.record.changes if isinstance(change, FileWritten) and change.path not in wanted
    ]
    if unwanted:
        ledger.undo(unwanted)


def _without_files(record: Record, platform: Platform) -> Record:
    """A record without the files that the package owns, and their directories."""
    owned = _list_owned(platform.layout)

    def stays(change: Change) -> bool:
        if isinstance(change, FileWritten):
            return change.path not in owned
        return not (isinstance(change, DirectoryMade) and change.path in OWN_DIRECTORIES)

    return replace(record, changes=tuple(change for change in record.changes if stays(change)))


def _list_owned(layout: Layout) -> frozenset[str]:
    """The files of the program, by its own manifest."""
    listed = json.loads(layout.program_manifest.read_bytes())
    return frozenset(
        {file["path"] for file in listed["files"]} | {f"/{layout.program_manifest.relative_to(layout.root)}"}
    )


def _without_configuration(record: Record, platform: Platform) -> Record:
    """A record without the configuration, so that it stays."""
    directory = platform.layout.config_dir
    kept = {
        change
        for change in record.changes
        if isinstance(change, FileWritten | DirectoryMade) and locate(platform, change.path).is_relative_to(directory)
    }
    return replace(record, changes=tuple(change for change in record.changes if change not in kept))
