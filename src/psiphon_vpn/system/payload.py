"""Every file that an installation puts on a machine, as values, for `install` and for packages.

All of it is root's (R12): root executes or loads it. The program's dependencies come from the environment that runs
this, which is hash-locked; each file is checked again against the record of its package.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from psiphon_vpn import __version__
from psiphon_vpn.errors import UserError
from psiphon_vpn.i18n import _
from psiphon_vpn.system import files, resources, units
from psiphon_vpn.system.completions import render_completions
from psiphon_vpn.system.dependencies import collect_dependencies
from psiphon_vpn.system.interpreter import find_interpreter
from psiphon_vpn.system.layout import Layout
from psiphon_vpn.system.manual import render_manual

PACKAGE: Final = Path(__file__).resolve().parents[1]
CHECKOUT: Final = PACKAGE.parents[1]
LEFT_OUT: Final = frozenset({"__pycache__"})
"""Directories of this package that are not installed. The laboratory is a separate package."""
KEPT_SUFFIXES: Final = frozenset({".py", ".mo", ".json", ".toml"})
KEPT_NAMES: Final = frozenset({"py.typed"})


@dataclass(frozen=True, kw_only=True)
class PayloadFile:
    """One file of an installation, root:root.

    Attributes:
        path: absolute, on the target.
        content: of the file.
        mode: permission bits.
    """

    path: str
    content: bytes
    mode: int

    def describe(self) -> dict[str, str]:
        """The file's entry in the manifest."""
        return {
            "path": self.path,
            "sha256": hashlib.sha256(self.content).hexdigest(),
            "mode": f"{self.mode:04o}",
            "owner": "root",
            "group": "root",
        }


def collect_payload(commands: click.Group, *, python: str | None = None) -> tuple[PayloadFile, ...]:
    """Collect every file, sorted by path; the same input gives the same bytes.

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
        *(_file(layout.program_dir / name, content, mode) for name, content, mode in carried),
        *_collect_program(layout),
        *(_file(layout.python_dir / name, content) for name, content in collect_dependencies(_find_lock())),
        _file(layout.command, _render_launcher(layout, python, "psiphon_vpn.__main__"), 0o755),
        _file(layout.daemon, _render_launcher(layout, python, "psiphon_vpn.service.__main__"), 0o755),
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
    return (*found, _file(layout.program_manifest, render_manifest(tuple(found))))


def render_manifest(payload: tuple[PayloadFile, ...]) -> str:
    """The manifest's text: every file except the manifest itself, with what `verify` compares."""
    content = {"version": __version__, "files": [file.describe() for file in payload]}
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def _file(path: Path, content: bytes | str, mode: int = 0o644) -> PayloadFile:
    return PayloadFile(path=str(path), content=content.encode() if isinstance(content, str) else content, mode=mode)


def _find_lock() -> Path:
    lock = CHECKOUT / "requirements.lock"
    if not lock.is_file():
        raise UserError(
            _("The program cannot be assembled"),
            _("this is an installed copy"),
            _("Run it from a checkout of the project."),
        )
    return lock


def _collect_program(layout: Layout) -> Iterator[PayloadFile]:
    for path in sorted(PACKAGE.rglob("*")):
        relative = path.relative_to(PACKAGE)
        if LEFT_OUT.intersection(relative.parts) or not path.is_file():
            continue
        if path.suffix in KEPT_SUFFIXES or path.name in KEPT_NAMES or path.parent == resources.DIRECTORY:
            yield _file(layout.python_dir / "psiphon_vpn" / relative, path.read_bytes())


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
        yield _file(layout.unit_dir / name, text)
    for name, text in units.render_dropins().items():
        yield _file(layout.dropin(name), text)
    for name, text in units.render_user_units().items():
        yield _file(layout.user_unit_dir / name, text)
    yield _file(layout.guard_script, units.render_guard_script(), 0o755)
    yield _file(layout.sleep_script, units.render_sleep_script(), 0o755)
    for path, text in files.render_system_files(layout).items():
        yield _file(path, text)
    for shell, text in render_completions(commands).items():
        for path in layout.completions[shell]:
            yield _file(path, text)
    for name, text in render_manual(commands).items():
        yield _file(layout.man_dir / f"man{name.rpartition('.')[2]}" / name, text)
