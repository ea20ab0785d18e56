# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Disk: the lock does not depend on it, but the intent and the core's data do."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from psiphon_vpn.diagnose.facts import Facts
from psiphon_vpn.diagnose.model import Outcome, check, fail, mark, ok, warn
from psiphon_vpn.diagnose.no_answer import Unknowable
from psiphon_vpn.i18n import _

MIB: Final = 1024 * 1024
SCARCE_MIB, NONE_MIB = 100, 5
RUN_MIB: Final = 1
SPACE: Final = mark(
    "Make room: the lock holds, but the tunnel program cannot store its list of servers, and no update fits."
)


def _measure(facts: Facts, path: Path) -> tuple[os.statvfs_result, Path]:
    """The file system of a path, or of its nearest existing parent."""
    while not facts.exists(path) and path != path.parent:
        path = path.parent
    try:
        return facts.system.read_space(path), path
    except OSError as error:
        raise Unknowable(f"{path}: {error.strerror}") from error


@check("disk.data", mark("There is room for the tunnel program's data"), SPACE)
def data(facts: Facts) -> Outcome:
    """Free space for psiphon-user below /var/lib."""
    space, path = _measure(facts, facts.layout.state_dir)
    free = space.f_bavail * space.f_frsize / MIB
    text = _("{free:.0f} MiB are free at {path}").format(free=free, path=path)
    if free < NONE_MIB:
        return fail(text)
    return warn(text) if free < SCARCE_MIB else ok(text)


@check("disk.inodes", mark("There is room for further files"), SPACE)
def inodes(facts: Facts) -> Outcome:
    """Free inodes; file systems without a limit report 0 of 0."""
    space, path = _measure(facts, facts.layout.state_dir)
    if space.f_files and space.f_favail < 50:
        return fail(_("{free} are free at {path}").format(free=space.f_favail, path=path))
    return ok(str(space.f_favail) if space.f_files else _("no limit"))


@check("disk.run", mark("There is room for the control socket"), mark("Find out what fills it: du -x /run"))
def run(facts: Facts) -> Outcome:
    """Free space below /run."""
    space, path = _measure(facts, facts.layout.runtime_dir.parent)
    free = space.f_bavail * space.f_frsize / MIB
    text = _("{free:.0f} MiB are free at {path}").format(free=free, path=path)
    return fail(text) if free < RUN_MIB else ok(text)


@check(
    "disk.writable",
    mark("The service can store what the user asked for"),
    mark("Mount it for writing: sudo mount -o remount,rw PATH. See dmesg: a broken disk does this."),
)
def writable(facts: Facts) -> Outcome:
    """Mounted read-only?"""
    space, path = _measure(facts, facts.layout.state_dir)
    return fail(_("{path} is read-only").format(path=path)) if space.f_flag & os.ST_RDONLY else ok(str(path))


CHECKS: Final = (data, inodes, run, writable)
