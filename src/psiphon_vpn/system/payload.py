# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Every file that does nothing by itself, as values: what a package contains. `acting` has the others.

All of it is root's (R12): root executes or loads it. The program's dependencies come from the environment that runs
this, which is hash-locked; each file is checked again against the record of its package.
"""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from psiphon_vpn import __version__
from psiphon_vpn.errors import UserError
from psiphon_vpn.i18n import _
from psiphon_vpn.system import resources, units
from psiphon_vpn.system.acting import collect_acting_files
from psiphon_vpn.system.completions import render_completions
from psiphon_vpn.system.dependencies import collect_dependencies
from psiphon_vpn.system.interpreter import find_interpreter
from psiphon_vpn.system.layout import Layout
from psiphon_vpn.system.manual import render_manual
from psiphon_vpn.system.payload_file import PayloadFile, make_file
from psiphon_vpn.system.resources import render_resource

PACKAGE: Final = Path(__file__).resolve().parents[1]
CHECKOUT: Final = PACKAGE.parents[1]
LEFT_OUT: Final = frozenset({"__pycache__"})
"""Directories of this package that are not installed. The laboratory is a separate package."""
KEPT_SUFFIXES: Final = frozenset({".py", ".mo", ".json", ".toml"})
KEPT_NAMES: Final = frozenset({"py.typed"})


def collect_payload(commands: click.Group, *, python: str | None = None) -> tuple[PayloadFile, ...]:
    """Collect every file that does nothing by itself, sorted by path; the same input gives the same bytes.

    Args:
        commands: the program's, of which man pages and completions are made.
        python: the interpreter on the target that the launchers name; None looks for one on this machine, and includes
            the running one if the machine's own is too old.

    Raises:
        UserError: there is no checkout with locked dependencies to install from, or they were changed.
    """
    layout = Layout()
    carried: tuple[tuple[str, bytes, int], ...] = ()
    if python is None:
        interpreter = find_interpreter(layout)
        python, carried = interpreter.path, interpreter.files
    found = [
        *(make_file(layout.program_dir / name, content, mode) for name, content, mode in carried),
        *_collect_program(layout),
        *(make_file(layout.python_dir / name, content) for name, content in collect_dependencies(_find_lock())),
        make_file(layout.command, _render_launcher(layout, python, "psiphon_vpn.__main__"), 0o755),
        make_file(layout.daemon, _render_launcher(layout, python, "psiphon_vpn.service.__main__"), 0o755),
        *_collect_system_files(layout, commands),
    ]
    found.sort(key=lambda file: file.path)
    twice = [one.path for one, other in itertools.pairwise(found) if one.path == other.path]
    if twice:
        raise UserError(
            _("The program cannot be assembled"),
            _("two of its parts contain {path}").format(path=twice[0]),
            _("Make a fresh checkout and try again."),
        )
    return (*found, make_file(layout.program_manifest, render_manifest(tuple(found))))


def render_manifest(payload: tuple[PayloadFile, ...]) -> str:
    """The manifest's text: every file except the manifest itself, with what `verify` compares.

    `acting` are the files that only a machine that was set up has.
    """
    content = {
        "version": __version__,
        "files": [file.describe() for file in payload],
        "acting": [file.describe() for file in collect_acting_files()],
    }
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def _find_lock() -> Path:
    lock = CHECKOUT / "requirements.lock"
    if not lock.is_file():
        raise UserError(
            _("The program cannot be assembled"),
            _("this is an installed copy"),
            _("Run the script of a clone: sudo ./Psiphon-Linux-VPN-Service-Setup.sh install"),
        )
    return lock


def _collect_program(layout: Layout) -> Iterator[PayloadFile]:
    for path in sorted(PACKAGE.rglob("*")):
        relative = path.relative_to(PACKAGE)
        if LEFT_OUT.intersection(relative.parts) or not path.is_file():
            continue
        if path.suffix in KEPT_SUFFIXES or path.name in KEPT_NAMES or path.parent == resources.DIRECTORY:
            yield make_file(layout.python_dir / "psiphon_vpn" / relative, path.read_bytes())


def _render_launcher(layout: Layout, python: str, module: str) -> str:
    # -I: ignore the current directory, PYTHON* and users' packages. -S: ignore the system's packages. -B: write no byte
    # code beside files that the manifest lists.
    return f"""\
#!{python} -ISB
import sys

if sys.version_info < (3, 11):
    sys.exit("psiphon-vpn: needs Python 3.11 or later, and this is an older one")
sys.path.insert(0, "{layout.python_dir}")

from {module} import main

sys.exit(main())
"""


def _collect_system_files(layout: Layout, commands: click.Group) -> Iterator[PayloadFile]:
    for name, text in units.render_units().items():
        yield make_file(layout.unit_dir / name, text)
    yield make_file(layout.user_unit_dir / units.NOTIFY_UNIT, units.render_notify_unit())
    yield make_file(layout.guard_script, units.render_guard_script(), 0o755)
    yield make_file(layout.sleep_script, units.render_sleep_script(), 0o755)
    # Every line a comment, so that the defaults hold.
    yield make_file(layout.config_template, render_resource("config.toml"))
    for shell, text in render_completions(commands).items():
        for path in layout.completions[shell]:
            yield make_file(path, text)
    for name, text in render_manual(commands).items():
        # Compressed as Debian's policy wants it (12.1), without a time, so that the same text gives the same bytes.
        content = gzip.compress(text.encode(), compresslevel=9, mtime=0)
        yield make_file(layout.man_dir / f"man{name.rpartition('.')[2]}" / f"{name}.gz", content)
