# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The program's dependencies: the versions in the lock file, and the files in this environment."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Final

from psiphon_vpn.errors import UserError
from psiphon_vpn.i18n import _

_PIN: Final = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s\\;]+)")
_DROPPED_PARTS: Final = frozenset({"__pycache__", "tests", "test", "..", "docs", "examples"})
_KEPT_METADATA: Final = ("METADATA", "entry_points.txt")
_LICENSES: Final = ("licen", "copying", "notice", "authors")
_NATIVE: Final = frozenset({".so", ".pyd", ".dylib", ".a"})


def read_pins(lock: Path) -> dict[str, str]:
    """Names and versions of a lock file."""
    found = (_PIN.match(line) for line in lock.read_text(encoding="utf-8").splitlines())
    return {match[1].lower(): match[2] for match in found if match}


def collect_dependencies(lock: Path) -> Iterator[tuple[str, bytes]]:
    """Yield every file of the locked packages: path below the packages' directory, and content.

    Each file is compared with the package's own record (RECORD, "Recording installed projects" of the Python packaging
    guide). pip wrote the record from an archive that it had checked against the hash in the lock file.

    Raises:
        UserError: a package is missing, has another version, was changed, or is not pure Python.
    """
    for name, version in sorted(read_pins(lock).items()):
        try:
            package = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            raise _refuse(_("the Python package {name} is missing").format(name=name)) from None
        if package.version != version:
            raise _refuse(
                _("the Python package {name} is {found} and not {version}").format(
                    name=name, found=package.version, version=version
                )
            )
        for file in sorted(package.files or ()):
            if _is_kept(file):
                yield str(file), _read_checked(file, name)


def _is_kept(file: PurePosixPath) -> bool:
    if _DROPPED_PARTS.intersection(file.parts) or file.suffix == ".pyc":
        return False
    if file.parts[0].endswith(".dist-info"):
        return file.name in _KEPT_METADATA or file.name.lower().startswith(_LICENSES)
    return True


def _read_checked(file: metadata.PackagePath, name: str) -> bytes:
    if file.suffix in _NATIVE:
        raise _refuse(_("the Python package {name} contains {file}, which is not Python").format(name=name, file=file))
    try:
        content = Path(str(file.locate())).read_bytes()
    except OSError as error:
        raise _refuse(f"{file}: {error.strerror}") from error
    if file.hash is None or file.hash.mode != "sha256":
        raise _refuse(_("{file} of the Python package {name} has no recorded hash").format(name=name, file=file))
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    if digest != file.hash.value:
        raise _refuse(_("{file} of the Python package {name} was changed").format(name=name, file=file))
    return content


def _refuse(why: str) -> UserError:
    return UserError(
        _("The program cannot be assembled"),
        why,
        _("Remove the directory .venv of the checkout and run the setup script again."),
    )
