# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds the line of a key or an error in a TOML file: tomllib gives values without their lines.

It splits the file into statements by extending each one until tomllib accepts it. So there is no second TOML parser
that could disagree with the first (TOML 1.0.0, https://toml.io/en/v1.0.0).
"""

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

# Extending a statement is quadratic in its lines. For longer ones the result is the first line.
MAX_STATEMENT_LINES: Final = 300
# Of one text, so that no text costs minutes; after so many wrong ends each line is taken for itself.
MAX_TRIALS: Final = 3000
# Only arrays and strings in three quotation marks may have several lines.
_OPENING: Final = ("[", '"""', "'''")
_CLOSING: Final = ("]", '"""', "'''")

_AT_LINE = re.compile(r"at line (\d+)")


def parse_toml(text: str) -> dict[str, object]:
    """Parse a TOML document.

    Raises:
        ValueError: it is not TOML. The only exception, whatever the text: tomllib itself also raises RecursionError
            (deep nesting) and OverflowError.
    """
    try:
        return tomllib.loads(text)
    except (RecursionError, OverflowError) as cause:
        raise ValueError("nested too deeply or a number too large") from cause


def find_error_line(text: str, error: ValueError) -> int:
    """Return the line, counted from 1, at which parse_toml failed with `error`."""
    if found := _AT_LINE.search(str(error)):
        return int(found[1])
    for statement in split_statements(text):
        if statement.content is None:
            return statement.first
    return _count_lines(text)


def find_key_line(text: str, path: Sequence[str]) -> int:
    """Return the line of the statement that first defines a key of a document that parses.

    Args:
        text: the document.
        path: names from the outermost table to the key.

    Returns:
        A line counted from 1; the first line if the key is not found.
    """
    for statement in split_statements(text):
        if statement.defines(path):
            return statement.first
    return 1


def _count_lines(text: str) -> int:
    return max(1, len(text.rstrip("\n").split("\n")))


@dataclass(frozen=True, kw_only=True)
class Statement:
    """A header or a key with its value, on one line or several; lines without a statement belong to none.

    Attributes:
        first: its first line, counted from 1.
        last: its last line.
        table: names of the table that it is in; of a header, of the table that it begins.
        is_header: whether it begins a table.
        content: what it defines of the whole document; None if it does not parse.
    """

    first: int
    last: int
    table: tuple[str, ...]
    is_header: bool = False
    content: Mapping[str, object] | None

    def defines(self, path: Sequence[str]) -> bool:
        """Whether it defines a key, or a part of it; `path` leads from the outermost table to the key."""
        return self.content is not None and _has_path(self.content, path)


def split_statements(text: str) -> Iterator[Statement]:
    """The statements in their order. Not to be relied on for a statement of more than `MAX_STATEMENT_LINES` lines."""
    lines = text.replace("\r\n", "\n").split("\n")
    table: tuple[str, ...] = ()
    start, left = 0, MAX_TRIALS
    while start < len(lines):
        for end in _list_ends(lines, start, wide=left > 0):
            try:
                statement = parse_toml("\n".join(lines[start:end]))
            except ValueError:
                left -= 1
                continue
            break
        else:
            yield Statement(first=start + 1, last=start + 1, table=table, content=None)
            start += 1
            continue
        if lines[start].lstrip(" \t").startswith("["):
            table = _header_path(statement)
            yield Statement(first=start + 1, last=end, table=table, is_header=True, content=statement)
        elif statement:
            yield Statement(first=start + 1, last=end, table=table, content=_nest(table, statement))
        start = end


def _header_path(statement: dict[str, object]) -> tuple[str, ...]:
    path: list[str] = []
    value: object = statement
    while isinstance(value, dict) and value:
        (name, value), *_rest = value.items()
        path.append(name)
    return tuple(path)


def _list_ends(lines: Sequence[str], start: int, *, wide: bool) -> Iterator[int]:
    """Where a statement can end: on its first line, or on one that can close what the first one can have opened."""
    yield start + 1
    if not wide or not any(opening in lines[start] for opening in _OPENING):
        return
    for end in range(start + 2, min(len(lines), start + MAX_STATEMENT_LINES) + 1):
        if any(closing in lines[end - 1] for closing in _CLOSING):
            yield end


def _nest(table: tuple[str, ...], statement: dict[str, object]) -> dict[str, object]:
    nested = statement
    for name in reversed(table):
        nested = {name: nested}
    return nested


def _has_path(value: object, path: Sequence[str]) -> bool:
    for name in path:
        if not isinstance(value, dict) or name not in value:
            return False
        value = value[name]
    return True
