# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The project for a guest: with its modules compiled, which takes an emulated processor minutes."""

from __future__ import annotations

import compileall
import functools
import io
import py_compile
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Final

from psiphon_lab.guest.guest import quote
from psiphon_lab.launch import SOURCE_ROOT
from psiphon_lab.namespace import LabError

PLACE: Final = "/run/source"
"""Where a guest has it."""
UNPACK: Final = f"mkdir -p {PLACE} && tar -xmf /exchange/source.tar -C {PLACE}"


@functools.cache
def pack_source() -> bytes:
    """An archive of the project's packages, for `UNPACK`. Raises LabError."""
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    stream = io.BytesIO()
    with tempfile.TemporaryDirectory(prefix="psiphon-source-") as name:
        copy = Path(name)
        for package in SOURCE_ROOT.iterdir():
            if (package / "__init__.py").is_file():
                shutil.copytree(package, copy / package.name, ignore=shutil.ignore_patterns("__pycache__"))
        if not compileall.compile_dir(copy, stripdir=name, prependdir=PLACE, quiet=1, invalidation_mode=mode):
            raise LabError("the project does not compile")
        with tarfile.open(fileobj=stream, mode="w") as archive:
            archive.add(copy, ".", filter=_open_to_all)
    return stream.getvalue()


def _open_to_all(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.mode |= 0o755 if member.isdir() else 0o644  # the directory itself was private
    return member


def python(*words: str) -> str:
    """A command of a guest's shell that runs this Python with the project."""
    return quote("env", f"PYTHONPATH={PLACE}", sys.executable, *words)
