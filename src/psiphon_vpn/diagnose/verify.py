# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""`verify`: compares every installed file with the manifest of the installation, and looks for other files."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from psiphon_vpn.accounts import find_group, find_user
from psiphon_vpn.diagnose.model import INSTALL_AGAIN
from psiphon_vpn.diagnose.system import System
from psiphon_vpn.errors import UserError
from psiphon_vpn.i18n import _
from psiphon_vpn.stored_files import StoredError, parse_object, take, take_or_none
from psiphon_vpn.system.byte_code import CACHE
from psiphon_vpn.system.layout import Layout
from psiphon_vpn.system.next_step import Need, advise
from psiphon_vpn.system.set_up import SetUp, find_set_up

MAX_DEPTH: Final = 24


class ManifestError(UserError):
    """The manifest cannot be read, so nothing can be compared."""

    def __init__(self, why: str, next_step: str | None = None) -> None:
        step = _(INSTALL_AGAIN) if next_step is None else next_step
        super().__init__(_("The installation cannot be verified"), why, step)


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """A file that is not as it was installed.

    Attributes:
        path: absolute, on the target.
        kind: "missing", "changed", "mode", "owner", "type", "unreadable" or "unexpected".
        detail: for people, translated.
    """

    path: str
    kind: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """The result of `verify`. count: files in the manifest."""

    version: str
    count: int
    troubles: tuple[Trouble, ...]


@dataclass(frozen=True, kw_only=True)
class _Entry:
    path: str
    sha256: str
    mode: int
    uid: int
    gid: int


def _number(value: Any, kind: str) -> int:
    if isinstance(value, int):
        return value
    if value == "root":
        return 0
    user = find_user(str(value)) if kind == "owner" else None
    number = user.uid if user is not None else find_group(str(value)) if kind == "group" else None
    if number is None:
        raise ManifestError(_("it names an {kind} that does not exist: {name}").format(kind=kind, name=value))
    return number


def read_manifest(system: System, layout: Layout, *, with_acting: bool = False) -> tuple[str, tuple[_Entry, ...]]:
    """The manifest's version and entries.

    Args:
        system: what is read.
        layout: of the installation.
        with_acting: also the files that only a machine that was set up has.

    Raises:
        ManifestError: it is missing or unreadable.
    """
    path = layout.program_manifest
    try:
        document = parse_object(system.read(path))
        listed = take(document, "files", list)
        if with_acting:
            listed = [*listed, *(take_or_none(document, "acting", list) or [])]
        entries = tuple(_read_entry(item) for item in listed)
        version = take_or_none(document, "version", str) or ""
    except FileNotFoundError:
        step = advise(Need.SERVICE, layout).step if find_set_up(layout) is SetUp.NO else None
        raise ManifestError(_("nothing is installed: there is no {path}").format(path=path), step) from None
    except OSError as error:
        raise ManifestError(f"{path}: {error.strerror}") from error
    except ValueError:
        raise ManifestError(_("{path} is not a manifest").format(path=path)) from None
    if not entries or any(not entry.path.startswith("/") or "/../" in entry.path for entry in entries):
        raise ManifestError(_("{path} is not a manifest").format(path=path))
    return version, entries


def _read_entry(item: object) -> _Entry:
    if not isinstance(item, dict):
        raise StoredError("an entry is not an object")
    mode = item.get("mode")
    return _Entry(
        path=take(item, "path", str),
        sha256=take(item, "sha256", str).lower(),
        # In the notation of chmod(1), or as a number.
        mode=int(mode, 8) if isinstance(mode, str) else take(item, "mode", int),
        uid=_number(item.get("owner", "root"), "owner"),
        gid=_number(item.get("group", "root"), "group"),
    )


def read_byte_code(system: System, layout: Layout) -> tuple[_Entry, ...]:
    """The files that were compiled on this machine; none if it has no record of them.

    Raises:
        ManifestError: the record is unreadable, or names other files.
    """
    path = layout.byte_code_record
    own = f"/{layout.program_dir.relative_to(layout.root)}/"
    try:
        entries = tuple(_read_entry(item) for item in take(parse_object(system.read(path)), "files", list))
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise ManifestError(f"{path}: {error.strerror}") from error
    except ValueError:
        raise ManifestError(_("{path} is not a manifest").format(path=path)) from None
    for entry in entries:
        parts = entry.path.split("/")
        if not entry.path.startswith(own) or ".." in parts or parts[-2] != CACHE or not parts[-1].endswith(".pyc"):
            raise ManifestError(_("{path} is not a manifest").format(path=path))
    return entries


def walk(system: System, directory: Path, *, depth: int = 0) -> Iterator[Path]:
    """Everything below a directory, links not followed."""
    if depth > MAX_DEPTH:
        return
    try:
        names = system.list_directory(directory)
    except (FileNotFoundError, NotADirectoryError):
        return
    for name in names:
        path = directory / name
        yield path
        try:
            is_directory = stat.S_ISDIR(system.stat(path).st_mode)
        except OSError:
            continue
        if is_directory:
            yield from walk(system, path, depth=depth + 1)


def verify(system: System, layout: Layout) -> VerifyReport:
    """Compare what is installed with the manifest.

    Raises:
        ManifestError: the manifest is missing or unreadable.
    """
    version, entries = read_manifest(system, layout, with_acting=find_set_up(layout) is not SetUp.NO)
    compiled = read_byte_code(system, layout)
    troubles: list[Trouble] = []
    for entry in (*entries, *compiled):
        found = _compare(system, layout.root / entry.path.lstrip("/"), entry)
        if found is not None:
            troubles.append(found)
    named = {layout.root / entry.path.lstrip("/") for entry in (*entries, *compiled)}
    # Written at installation, with this machine's user numbers: `diagnose` compares them with the policy.
    rendered = {layout.boot_rules, layout.guard_rules, layout.frame_rules, layout.drop_rules, layout.bridge_rules}
    known = named | rendered | {layout.program_manifest, layout.byte_code_record}
    above = {parent for path in known for parent in path.parents}
    for path in walk(system, layout.program_dir):
        if path not in known and path not in above:
            shown = "/" + str(path.relative_to(layout.root))
            troubles.append(Trouble(path=shown, kind="unexpected", detail=_("it was not installed by this program")))
    return VerifyReport(version=version, count=len(entries), troubles=tuple(troubles))


def _compare(system: System, path: Path, entry: _Entry) -> Trouble | None:
    def trouble(kind: str, detail: str) -> Trouble:
        return Trouble(path=entry.path, kind=kind, detail=detail)

    try:
        status = system.stat(path)
        if not stat.S_ISREG(status.st_mode):
            return trouble("type", _("it is not an ordinary file"))
        if system.hash(path) != entry.sha256:
            return trouble("changed", _("its content is not the installed one"))
    except (FileNotFoundError, NotADirectoryError):
        return trouble("missing", _("it is missing"))
    except OSError as error:
        return trouble("unreadable", error.strerror or str(error))
    if stat.S_IMODE(status.st_mode) != entry.mode:
        mode = stat.S_IMODE(status.st_mode)
        return trouble("mode", _("its mode is {mode:o}, not {wanted:o}").format(mode=mode, wanted=entry.mode))
    if (status.st_uid, status.st_gid) != (entry.uid, entry.gid):
        owner = f"{status.st_uid}:{status.st_gid}"
        return trouble("owner", _("it belongs to {owner}").format(owner=owner))
    return None
