# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What programs on lab hosts need: an environment, an identity, and the paths that they must be able to read."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from psiphon_lab import pace

SOURCE_ROOT = Path(__file__).resolve().parents[1]
"""The directory with the packages of this project."""
_CLEAN_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def clean_environment(**extra: str) -> dict[str, str]:
    """The environment of lab processes: a fixed PATH and locale, and the project on Python's path."""
    slow = {name: os.environ[name] for name in (pace.VARIABLE,) if name in os.environ}
    base = {"PATH": _CLEAN_PATH, "LC_ALL": "C.UTF-8", "HOME": "/", "PYTHONPATH": str(SOURCE_ROOT)}
    return {**base, **slow, **extra}


def python_paths() -> list[Path]:
    """The paths that an ordinary user must be able to read to run this Python and this project."""
    return [Path(sys.base_prefix), Path(sys.prefix), SOURCE_ROOT]


def setpriv_argv(
    *,
    uid: int | None,
    gid: int | None,
    groups: Sequence[int],
    ambient: Sequence[str],
    bounding: Sequence[str] | None,
    no_new_privs: bool,
) -> list[str]:
    """The setpriv(1) command that gives the next program its identity; empty if nothing changes."""
    argv: list[str] = []
    if uid is not None:
        argv.append(f"--reuid={uid}")
    if gid is not None or uid is not None:
        argv.append(f"--regid={uid if gid is None else gid}")
        argv.append(f"--groups={','.join(map(str, groups))}" if groups else "--clear-groups")
    if ambient:
        names = ",".join(f"+{name}" for name in ambient)
        argv += [f"--inh-caps={names}", f"--ambient-caps={names}"]
    if bounding is not None:
        argv.append(f"--bounding-set={','.join(['-all', *(f'+{name}' for name in bounding)])}")
    if no_new_privs:
        argv.append("--no-new-privs")
    return ["setpriv", *argv, "--"] if argv else []
