# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The content of a computer's disk, to compare before and after."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

# What a running system writes by itself. The service puts nothing there, except what is named below.
RESTLESS = (
    "proc", "sys", "dev", "run", "tmp", "var/tmp", "var/log", "var/cache", "var/lib/systemd", "var/lib/private",
    "var/lib/NetworkManager", "var/lib/dpkg", "var/lib/apt", "usr/src", "root", "opt",
    "etc/machine-id", "etc/.updated", "var/.updated", "etc/resolv.conf", "var/lib/polkit-1", "var/lib/dbus",
)  # fmt: skip
# Backups that the system's account tools make of the files that they change, with or without the account.
BACKUPS = ("etc/passwd-", "etc/group-", "etc/shadow-", "etc/gshadow-", "etc/.pwd.lock")


def read_disk(root: Path) -> dict[str, str]:
    """Type, mode, owner and content of every file, by path."""
    found: dict[str, str] = {}
    for directory, names, files in os.walk(root):
        relative = os.path.relpath(directory, root)
        names[:] = sorted(name for name in names if not _is_restless(os.path.normpath(f"{relative}/{name}")))
        for name in (*names, *files):
            path = os.path.normpath(f"{relative}/{name}")
            if not _is_restless(path):
                found[path] = _describe(root, Path(path))
    return found


def _is_restless(path: str) -> bool:
    return path in BACKUPS or path in RESTLESS


def _describe(root: Path, relative: Path) -> str:
    path = root / relative
    status = path.lstat()
    content = ""
    if stat.S_ISLNK(status.st_mode):
        content = os.readlink(path)
    elif stat.S_ISREG(status.st_mode) and relative.parts[0] == "usr":
        # Nothing there is ever changed and restored, so size and time are enough; the content need not be read.
        content = f"{status.st_size} {status.st_mtime_ns}"
    elif stat.S_ISREG(status.st_mode):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
    return f"{stat.filemode(status.st_mode)} {status.st_uid}:{status.st_gid} {content}"


def list_changes(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """The differences, one per line."""
    lines = [f"- {path} {text}" for path, text in before.items() if after.get(path) != text]
    return lines + [f"+ {path} {text}" for path, text in after.items() if before.get(path) != text]
