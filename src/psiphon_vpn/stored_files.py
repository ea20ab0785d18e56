# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads files that this program has stored: JSON, checked field by field.

Such a file may have been truncated by a full disk, restored from another version's backup, edited by hand, or put there
by somebody else. Whatever its content, one exception says why it cannot be used, so that no file can end a process.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NoReturn, TypeVar

T = TypeVar("T")

_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
"""Without O_NONBLOCK, opening a pipe would wait for its writer, and opening a device may have effects."""


class StoredError(ValueError):
    """This program did not store this. The text is the reason, in English."""


def read_stored(path: Path, *, high: int) -> bytes:
    """The content of a small regular file; a link is not followed.

    Args:
        path: the file.
        high: greatest size in bytes; a larger file is refused.

    Raises:
        OSError: it does not exist or cannot be read.
        StoredError: it is no regular file, or too large.
    """
    with os.fdopen(os.open(path, _FLAGS), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise StoredError("it is no regular file")
        content = file.read(high + 1)
    if len(content) > high:
        raise StoredError("it is too large")
    return content


def parse_object(content: bytes) -> dict[str, object]:
    """One JSON object (RFC 8259) in UTF-8, without duplicate names.

    Raises:
        StoredError: it is anything else. The only exception, whatever the bytes.
    """
    try:
        found = json.loads(
            content.decode(), object_pairs_hook=_take_once, parse_constant=_refuse, parse_float=_parse_float
        )
    except StoredError:
        raise
    except (ValueError, RecursionError, MemoryError) as error:
        raise StoredError("it is not JSON") from error
    if not isinstance(found, dict):
        raise StoredError("it is no object")
    return found


def _take_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise StoredError("a name is there twice")
    return found


def _refuse(word: str) -> NoReturn:
    # Python reads NaN and Infinity; JSON has neither.
    raise StoredError(f"{word} is no number")


def _parse_float(text: str) -> float:
    if not math.isfinite(value := float(text)):
        _refuse(text[:20])
    return value


def take(fields: Mapping[str, object], name: str, kind: type[T]) -> T:
    """The value of a field, of exactly this type (a bool is no int); raises StoredError."""
    value = fields.get(name)
    if type(value) is not kind or not is_text(value):
        raise StoredError(f"{name} is missing or of the wrong kind")
    return value


def take_or_none(fields: Mapping[str, object], name: str, kind: type[T]) -> T | None:
    """The same for a field that may be null or missing."""
    return None if fields.get(name) is None else take(fields, name, kind)


def is_text(value: object) -> bool:
    """Whether a string can be written and shown: JSON can also contain lone surrogates (RFC 8259, 8.2)."""
    return not isinstance(value, str) or not any("\ud800" <= character <= "\udfff" for character in value)
