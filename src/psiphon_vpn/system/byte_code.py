# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Compiles the installed program, so that no command has to; a script for the interpreter that will run it.

`python -ISB byte_code.py [ROOT]` needs the standard library alone. The byte code is beside its sources, as Python
expects it, and Python compares it with the hash of its source at each import (PEP 552, "checked"): byte code of an
earlier version is never run in the place of a newer source, whatever the times of the files. It belongs to root, like
the sources. `verify` compares it with a record of its own, since it is made on the machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import marshal
import os
import sys
from collections.abc import Iterator

PROGRAM = "/usr/lib/psiphon-vpn"
MANIFEST = f"{PROGRAM}/manifest.json"
RECORD = f"{PROGRAM}/byte_code.json"
CACHE = "__pycache__"
"""Name of the directories in which Python looks for byte code (PEP 3147)."""
LEFT_OUT = "/pygments/"
"""A library with hundreds of modules that no command loads."""
CHECKED = (0b11).to_bytes(4, "little")
"""Flags of byte code that is compared with the hash of its source (PEP 552)."""
NEW = ".psiphon-new"


def compile_program(root: str) -> int:
    """Compile every source that the manifest lists below the program's directory, and remove other byte code there.

    What is there and valid stays. Whenever this is interrupted, each file of byte code is whole or absent.

    Args:
        root: of the target, "/" on a real machine.

    Returns:
        How many files were compiled.

    Raises:
        OSError: the manifest cannot be read, or the byte code cannot be written.
        ValueError: the manifest is not one.
    """
    known = _read_record(root)
    wanted: dict[str, dict[str, str]] = {}
    made: list[str] = []
    for path in _list_sources(root):
        with open(_locate(root, path), "rb") as file:
            source = file.read()
        cache = importlib.util.cache_from_source(path)
        before = _read(_locate(root, cache))
        if before is not None and known.get(cache) == _hash(before) and before.startswith(_render_head(source)):
            wanted[cache] = _describe(cache, before)
            continue
        try:
            code = compile(source, path, "exec", dont_inherit=True)
        except (SyntaxError, ValueError):
            continue  # for another version of Python: if it is imported, that says so
        content = _render_head(source) + marshal.dumps(code)
        _write(_locate(root, cache), content)
        wanted[cache] = _describe(cache, content)
        made.append(cache)
    record = (json.dumps({"files": list(wanted.values())}, indent=1, sort_keys=True) + "\n").encode()
    if made or _read(_locate(root, RECORD)) != record:
        _write(_locate(root, RECORD), record)
        made.append(RECORD)
        # Before any has its name: after a power cut no file may be there without its content.
        os.sync()
    for path in made:
        os.replace(_locate(root, path) + NEW, _locate(root, path))
    _remove_others(root, set(wanted))
    return len(set(made) - {RECORD})


def _locate(root: str, path: str) -> str:
    return os.path.join(root, path.lstrip("/"))


def _list_sources(root: str) -> Iterator[str]:
    with open(_locate(root, MANIFEST), "rb") as file:
        listed = json.load(file)["files"]
    for entry in listed:
        path = entry["path"]
        if path.startswith(f"{PROGRAM}/") and path.endswith(".py") and LEFT_OUT not in path and "/../" not in path:
            yield path


def _render_head(source: bytes) -> bytes:
    return importlib.util.MAGIC_NUMBER + CHECKED + importlib.util.source_hash(source)


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _describe(path: str, content: bytes) -> dict[str, str]:
    return {"path": path, "sha256": _hash(content), "mode": "0644", "owner": "root", "group": "root"}


def _read(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return None


def _read_record(root: str) -> dict[str, str]:
    content = _read(_locate(root, RECORD))
    try:
        return {entry["path"]: entry["sha256"] for entry in json.loads(content or b"")["files"]}
    except (ValueError, KeyError, TypeError):
        return {}


def _write(path: str, content: bytes) -> None:
    """Write a file under its new name; only `os.replace` puts it in its place."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(os.path.dirname(path), 0o755)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path + NEW)
    with open(os.open(path + NEW, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644), "wb") as file:
        file.write(content)
        file.flush()


def _remove_others(root: str, wanted: set[str]) -> None:
    for directory, _names, filenames in os.walk(_locate(root, PROGRAM), topdown=False):
        if os.path.basename(directory) != CACHE:
            continue
        for name in filenames:
            path = "/" + os.path.relpath(os.path.join(directory, name), root)
            if path not in wanted:
                os.unlink(os.path.join(directory, name))
        with contextlib.suppress(OSError):  # it is not empty
            os.rmdir(directory)


if __name__ == "__main__":
    os.umask(0o022)
    sys.stdout.write(f"{compile_program(sys.argv[1] if len(sys.argv) > 1 else '/')}\n")
