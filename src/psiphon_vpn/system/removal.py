"""In which order an installation is undone, so that no failure leaves rules in the kernel that the next boot lacks.

The program and the lock are undone last and as one: only after everything else succeeded, and put back where a part of
it fails. So a machine that is not opened is locked now and at the next boot, and has the program that goes on with the
removal.
"""

from __future__ import annotations

import contextlib
import enum
import os
from collections.abc import Iterable
from pathlib import Path

from psiphon_vpn import network_managers
from psiphon_vpn.system.change import Change, Previous, locate
from psiphon_vpn.system.layout import (
    GUARD_UNIT,
    KILLSWITCH_FAILED_UNIT,
    KILLSWITCH_UNIT,
    SERVICE_UNIT,
    Layout,
)
from psiphon_vpn.system.platform import Platform
from psiphon_vpn.system.system_changes import SettingWritten, TablesLoaded, UnitsRead, UnitStarted
from psiphon_vpn.system.tree_changes import DirectoryMade, FileWritten, look_at, put_back


class Turn(enum.IntEnum):
    """When a change is undone. A turn begins when the one before has succeeded as a whole.

    The last two are one: where anything of them fails, all of them are put back.
    """

    DATA = 0
    """The service, its settings, its data: what others write to, and so what fails."""
    SYSTEM = 1
    """What other programs of the system read; the account; routes and the TUN."""
    PROGRAM = 2
    """What it takes to go on with the removal."""
    LOCK = 3
    """The lock, now and at boot. The tables go last: that opens."""


def list_lock_files(layout: Layout) -> frozenset[Path]:
    """What the lock at boot is made of, but for the rules."""
    return frozenset(
        {
            *(layout.unit_dir / unit for unit in (KILLSWITCH_UNIT, KILLSWITCH_FAILED_UNIT, GUARD_UNIT)),
            *(layout.dropin(unit) for unit in ("sysinit.target", *network_managers.UNITS)),
            layout.guard_script,
        }
    )


def find_turn(change: Change, platform: Platform) -> Turn:
    """The turn of a change."""
    layout = platform.layout
    match change:
        case TablesLoaded() | UnitsRead():
            return Turn.LOCK
        case UnitStarted(unit=unit):
            return Turn.DATA if unit == SERVICE_UNIT else Turn.LOCK
        case SettingWritten():
            return Turn.DATA
        case FileWritten(path=path):
            return _find_turn_of_file(locate(platform, path), layout)
        case DirectoryMade(path=path, shared=shared):
            target = locate(platform, path)
            # Files of the lock are in shared directories and in the program's.
            is_around_lock = shared or target == layout.program_dir or target.is_relative_to(layout.rules_dir)
            return Turn.LOCK if is_around_lock else Turn.DATA
        case _:
            return Turn.SYSTEM


def _find_turn_of_file(path: Path, layout: Layout) -> Turn:
    if path in list_lock_files(layout) or path.is_relative_to(layout.rules_dir):
        return Turn.LOCK
    if path in {layout.command, layout.daemon} or path.is_relative_to(layout.program_dir):
        return Turn.PROGRAM
    return Turn.DATA if path.is_relative_to(layout.config_dir) else Turn.SYSTEM


def sort_by_turn(changes: Iterable[Change], platform: Platform) -> dict[Turn, tuple[Change, ...]]:
    """The changes of each turn, in the order in which they are undone: the last one first."""
    last_first = tuple(reversed(tuple(changes)))
    return {turn: tuple(change for change in last_first if find_turn(change, platform) is turn) for turn in Turn}


def is_lock_recorded(changes: Iterable[Change]) -> bool:
    """Whether the lock was closed by this installation, or was about to be: then nothing opens it but its removal."""
    return any(isinstance(change, UnitStarted) and change.unit == KILLSWITCH_UNIT for change in changes)


class FilesKept:
    """Program and lock as they are, in memory: put back when they cannot be removed as a whole.

    Args:
        changes: that are about to be undone.
        platform: the system to change.
    """

    def __init__(self, changes: Iterable[Change], platform: Platform) -> None:
        self._platform = platform
        self._changes = tuple(changes)
        self._files: dict[Path, Previous] = {}
        for change in self._changes:
            if isinstance(change, FileWritten | DirectoryMade):
                path = locate(platform, change.path)
                with contextlib.suppress(OSError):  # what cannot be read may be removed all the same
                    if (found := look_at(path)) is not None:
                        self._files[path] = found

    def put_back(self) -> None:
        """Put the files back and let the units of the lock hold again, as far as that goes. Never raises."""
        for path, found in sorted(self._files.items()):
            with contextlib.suppress(Exception):
                self._put_back(path, found)
        manager, layout = self._platform.manager, self._platform.layout
        with contextlib.suppress(Exception):
            manager.reread()
        if not (manager.is_running() and is_lock_recorded(self._changes)):
            return
        with contextlib.suppress(Exception):
            self._platform.kernel.load_rules(layout.boot_rules)
        for unit in (KILLSWITCH_UNIT, GUARD_UNIT):
            with contextlib.suppress(Exception):
                if not manager.is_active(unit):
                    manager.start(unit)

    @staticmethod
    def _put_back(path: Path, found: Previous) -> None:
        if found.content is None and found.target is None:
            path.mkdir(exist_ok=True)
            os.chown(path, found.uid, found.gid)
            path.chmod(found.mode)
        elif look_at(path) != found:
            put_back(path, found)
