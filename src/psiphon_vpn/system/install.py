"""`install` and `uninstall`, and the two commands that packages call: the order of their steps.

A clone's installation puts the program's files on the machine, journaled, and then configures; a package's files are
already there. Unit files are written after the rules that they load, so that a machine that is switched off in between
boots as before, or locked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Final, Protocol

from psiphon_vpn import __version__
from psiphon_vpn.errors import UserError, describe_failure
from psiphon_vpn.i18n import _
from psiphon_vpn.system import released
from psiphon_vpn.system.change import Change, locate
from psiphon_vpn.system.configure import (
    close_lock,
    enable_for_boot,
    find_running,
    prepare,
    record_lock,
    relock,
    start_service,
)
from psiphon_vpn.system.journal import Journal, Ledger, Method, Record, Stage, UndoError, open_ledger
from psiphon_vpn.system.layout import Layout
from psiphon_vpn.system.platform import Platform
from psiphon_vpn.system.removal import is_lock_recorded
from psiphon_vpn.system.room import check_room
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
    *,
    say: Say,
    install_core: Callable[[], bool] | None = None,
    dry_run: bool = False,
) -> InstallResult:
    """Put the program on this machine, lock it and start the service.

    Args:
        platform: the system to change.
        payload: the program's files.
        say: shows each change before it is made.
        install_core: installs the tunnel core and returns whether it is a different one; called before the lock closes.
        dry_run: only show.

    Raises:
        UserError: it failed. Either nothing was changed, or the machine is locked; it says which.
    """
    ledger = open_ledger(platform, method=Method.CLONE, version=__version__, say=say, dry_run=dry_run)
    repeated = Journal(platform).read() is not None
    if not dry_run:
        layout = platform.layout
        files = {layout.root / file.path.lstrip("/"): len(file.content) for file in payload}
        check_room(files, _list_own_places(layout), what=_("Nothing was installed"))
    with _Recovering(ledger):
        ledger.begin()
        record_lock(ledger)
        first, units = _split(platform, payload)
        ledger.do(*_list_changes(platform, first))
        prepare(ledger)
        if install_core is not None:
            ledger.act(_("install the tunnel core"), lambda: ledger.count(install_core()))
        ledger.do(*_list_changes(platform, units))
        _remove_unwanted(ledger, payload)
        # Without changes a running service need not be disturbed.
        undisturbed = ledger.done == 0
        renew = frozenset() if undisturbed else find_running(platform)
        close_lock(ledger, undisturbed=undisturbed)
        start_service(ledger, renew=renew, undisturbed=undisturbed)
        ledger.finish()
    return InstallResult(changes=ledger.done, repeated=repeated, closed=True)


def configure_package(platform: Platform, *, say: Say, close: bool) -> InstallResult:
    """Configure a package whose files are in place, at the first installation and at every upgrade.

    Args:
        platform: the system to change.
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
        prepare(ledger)
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


def find_interruption(platform: Platform) -> str | None:
    """A sentence about an unfinished operation; None if there is none. Raises JournalError."""
    record = Journal(platform).read()
    if record is None or record.stage is Stage.INSTALLED:
        return None
    if record.stage is Stage.REMOVING:
        return _("The removal did not finish. Continue with: sudo psiphon-vpn uninstall")
    return _("The installation did not finish. Run the same command again, or undo it: sudo psiphon-vpn uninstall")


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


def _split(platform: Platform, payload: Iterable[Payload]) -> tuple[list[Payload], list[Payload]]:
    """The files that come first, and those that systemd acts on, which come after them."""
    units = PurePosixPath("/usr/lib/systemd")
    first: list[Payload] = []
    second: list[Payload] = []
    for file in payload:
        (second if PurePosixPath(file.path).is_relative_to(units) else first).append(file)
    # The units come before the drop-ins by which network managers require them, and so are undone after those.
    second.sort(key=lambda file: (file.path.endswith(".conf"), file.path))
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


def _remove_unwanted(ledger: Ledger, payload: Iterable[Payload]) -> None:
    """Undo the files of an earlier version that this one does not have."""
    layout = ledger.platform.layout
    wanted = {file.path for file in payload}
    rendered = {layout.boot_rules, layout.drop_rules, layout.guard_rules, layout.frame_rules, layout.config}
    rendered |= {layout.readers, layout.bridges, layout.bridge_rules}
    wanted |= {"/" + str(path.relative_to(layout.root)) for path in rendered}
    unwanted = [
        change for change in ledger.record.changes if isinstance(change, FileWritten) and change.path not in wanted
    ]
    if unwanted:
        ledger.undo(unwanted)


def _without_files(record: Record, platform: Platform) -> Record:
    """A record without the files that the package owns, and their directories."""
    layout = platform.layout
    kept_below = [Path("/") / path.relative_to(layout.root) for path in (layout.rules_dir, layout.config_dir)]

    def stays(change: Change) -> bool:
        if isinstance(change, FileWritten):
            return any(Path(change.path).is_relative_to(path) for path in kept_below)
        return not (isinstance(change, DirectoryMade) and (change.shared or change.path in OWN_DIRECTORIES))

    return replace(record, changes=tuple(change for change in record.changes if stays(change)))
