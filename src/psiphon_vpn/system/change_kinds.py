# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""All kinds of changes, by their words in the journal."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import fields
from pathlib import PurePosixPath
from typing import Any, TypeVar, get_args, get_type_hints

from psiphon_vpn.stored_files import StoredError, is_text
from psiphon_vpn.system.change import Change, Previous
from psiphon_vpn.system.system_changes import (
    AccountMade,
    RoutingMade,
    ServiceReread,
    SettingWritten,
    TablesLoaded,
    UnitsRead,
    UnitStarted,
)
from psiphon_vpn.system.tree_changes import DirectoryMade, FileWritten

T = TypeVar("T")

KINDS: Mapping[str, type[Change]] = {
    kind.kind: kind
    for kind in (
        FileWritten,
        DirectoryMade,
        AccountMade,
        SettingWritten,
        UnitStarted,
        TablesLoaded,
        RoutingMade,
        UnitsRead,
        ServiceReread,
    )
}


def restore_change(stored: object) -> Change:
    """Read a change that `store` wrote.

    Raises:
        StoredError: it is not a change; the only exception, whatever the argument.
    """
    if not isinstance(stored, dict):
        raise StoredError("a change is not an object")
    values = dict(stored)
    kind = values.pop("kind", None)
    if not isinstance(kind, str) or kind not in KINDS:
        raise StoredError("an unknown kind of change")
    if isinstance(values.get("previous"), dict):
        values["previous"] = _build(Previous, values["previous"])
    change = _build(KINDS[kind], values)
    _check_places(change)
    return change


def _build(kind: type[T], values: Mapping[str, object]) -> T:
    """A value of a dataclass, from fields that are all known and of the declared types."""
    hints = _read_hints(kind)
    for name, value in values.items():
        if name not in hints or not _matches(value, hints[name]):
            raise StoredError(f"{name} of a change is unknown or of the wrong kind")
    try:
        return kind(**values)
    except TypeError as error:
        raise StoredError("a change lacks a field") from error


def _read_hints(kind: type[Any]) -> Mapping[str, tuple[type, ...]]:
    hints = get_type_hints(kind)
    # A field that is not compared is not stored either: the content of a file.
    return {field.name: get_args(hints[field.name]) or (hints[field.name],) for field in fields(kind) if field.compare}


def _matches(value: object, allowed: tuple[type, ...]) -> bool:
    """Whether a value has one of the types. A truth value is not a number; a number is a mode or an id."""
    if type(value) not in allowed:
        return False
    if isinstance(value, str):
        return is_text(value) and "\0" not in value
    return not isinstance(value, int) or 0 <= value < 2**32 - 1


def _check_places(change: Change) -> None:
    """Refuse paths where an installation never writes."""
    for name in ("path", "declaration"):
        place = PurePosixPath(getattr(change, name, "/"))
        if not place.is_absolute() or ".." in place.parts:
            raise StoredError(f"{name} of a change leads elsewhere")
    setting = PurePosixPath(getattr(change, "name", "net"))
    if setting.is_absolute() or ".." in setting.parts:
        raise StoredError("name of a change leads elsewhere")
    previous = getattr(change, "previous", None)
    if isinstance(previous, Previous) and previous.content is not None:
        try:
            base64.b64decode(previous.content, validate=True)
        except ValueError as error:
            raise StoredError("content of a change is damaged") from error
