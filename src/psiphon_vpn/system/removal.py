# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The order in which an installation is undone, so that no failure leaves rules in the kernel but not at the next boot.

The program and the lock are undone last and together: only after everything else succeeded, and they are put back if a
part of them fails. So a machine that was not opened is locked now and at the next boot, and still has the program to
continue the removal.
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
    SERVERS_TIMER,
    SERVICE_UNIT,
    Layout,
)
from psiphon_vpn.system.platform import Platform
from psiphon_vpn.system.system_changes import SettingWritten, TablesLoaded, UnitsRead, UnitStarted
from psiphon_vpn.system.tree_changes import DirectoryMade, FileWritten, look_at, put_back


class Turn(enum.IntEnum):
    """When a change is undone. A turn begins after the previous one has succeeded completely.

    The last two go together: if anything of them fails, all of it is put back.
    """

    DATA = 0
    """The service, its settings, its data: others write to them, so these are most likely to fail."""
    SYSTEM = 1
    """Files for other programs of the system; the account; routes and the TUN."""
    PROGRAM = 2
    """What a repeated removal needs."""
    LOCK = 3
    """The lock, now and at boot. The tables go last: that opens."""


def list_lock_files(layout: Layout) -> frozenset[Path]:
    """The files of the lock at boot, except for the rules."""
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
            return Turn.DATA if unit in {SERVICE_UNIT, SERVERS_TIMER} else Turn.LOCK
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
    """Whether this installation closed the lock, or was about to: then only its removal opens."""
    return any(isinstance(change, UnitStarted) and change.unit == KILLSWITCH_UNIT for change in changes)


class FilesKept:
    """Copies of program and lock in memory, to put them back if they cannot be removed completely.

    Args:
        changes: the changes that are about to be undone.
        platform: the system to change.
    """

    def __init__(self, changes: Iterable[Change], platform: Platform) -> None:
        self._platform = platform
        self._changes = tuple(changes)
        self._files: dict[Path, Previous] = {}
        for change in self._changes:
            if isinstance(change, FileWritten | DirectoryMade):
                path = locate(platform, change.path)
                with contextlib.suppress(OSError):  # an unreadable file may still be removed
                    if (found := look_at(path)) is not None:
                        self._files[path] = found

    def put_back(self) -> None:
        """Put the files back and start the units of the lock again, as far as possible. Never raises."""
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
