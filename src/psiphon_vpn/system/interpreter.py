# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The Python that runs the installed program: the system's own, or one that is installed with it."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from psiphon_vpn.errors import UserError
from psiphon_vpn.i18n import _
from psiphon_vpn.run import CommandError, run
from psiphon_vpn.system.layout import Layout

SYSTEM_PYTHON: Final = "/usr/bin/python3"
MIN_VERSION: Final = (3, 11)
_CARRIED: Final = "python"
"""Directory below the program's own."""
_SYSTEM_PREFIXES: Final = (Path("/usr/bin"), Path("/usr/local/bin"))
_DROPPED: Final = frozenset(
    "__pycache__ test tests idlelib tkinter turtledemo ensurepip site-packages pydoc_data lib2to3 tcl8 tcl8.6 tk8.6 "
    "itcl4.2.4 thread2.8.9 pkgconfig".split()
)


@dataclass(frozen=True, kw_only=True)
class Interpreter:
    """A Python on the target.

    Attributes:
        path: of the program, on the target.
        files: files to install with it: path below the program's directory, content, mode. Empty for the system's own.
    """

    path: str
    files: tuple[tuple[str, bytes, int], ...] = ()


def find_interpreter(layout: Layout) -> Interpreter:
    """Choose the system's /usr/bin/python3 if it is new enough, otherwise the Python that runs this.

    If that one belongs to the system too, its path is used; otherwise it is copied below the program's directory: root
    must not run a file in a checkout that its user can write to.

    Raises:
        UserError: the running one cannot be copied.
    """
    if _is_new_enough(SYSTEM_PYTHON):
        return Interpreter(path=SYSTEM_PYTHON)
    base = Path(os.path.realpath(getattr(sys, "_base_executable", sys.executable)))
    if base.parent in _SYSTEM_PREFIXES and _is_roots(base):
        return Interpreter(path=str(base))
    return carry_interpreter(layout, Path(sys.base_prefix), base)


def _is_new_enough(path: str) -> bool:
    code = f"import sys; sys.exit(sys.version_info < {MIN_VERSION})"
    try:
        return run([path, "-ISB", "-c", code], ok=range(256)).returncode == 0
    except CommandError:
        return False


def _is_roots(path: Path) -> bool:
    status = path.stat()
    return status.st_uid == 0 and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def carry_interpreter(layout: Layout, prefix: Path, program: Path) -> Interpreter:
    """Install a whole Python: its program and its standard library, without the parts that no service needs.

    Args:
        layout: of the target.
        prefix: of the Python (sys.base_prefix).
        program: the interpreter, below the prefix and not a symbolic link.

    Raises:
        UserError: it is not self-contained: its program is not below its prefix.
    """
    if not program.is_relative_to(prefix) or prefix in {Path("/"), Path("/usr"), Path("/usr/local")}:
        raise UserError(
            _("The program cannot be installed"),
            _("this system's Python is older than 3.11, and {path} cannot be copied").format(path=program),
            _("Remove the directory .venv of the checkout and run the setup script again; it brings a suitable one."),
        )
    files = tuple((f"{_CARRIED}/{name}", content, mode) for name, content, mode in _collect(prefix, program))
    return Interpreter(path=str(layout.program_dir / _CARRIED / program.relative_to(prefix)), files=files)


def _collect(prefix: Path, program: Path) -> Iterator[tuple[str, bytes, int]]:
    yield str(program.relative_to(prefix)), program.read_bytes(), 0o755
    for directory, names, filenames in os.walk(prefix / "lib"):
        names[:] = sorted(name for name in names if name not in _DROPPED and not name.startswith("config-"))
        for filename in sorted(filenames):
            path = Path(directory) / filename
            # Links are second names of files that are copied under their own names.
            if path.is_symlink() or not path.is_file() or path.suffix == ".a":
                continue
            yield str(path.relative_to(prefix)), path.read_bytes(), 0o755 if os.access(path, os.X_OK) else 0o644
