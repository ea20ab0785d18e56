# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Changes one key of a TOML text, and nothing else: other lines, comments and their order stay. Pure.

Several ways to write a change are tried, the nicest first. Each result is read again by tomllib and compared with what
was asked, value by value and line by line; one that differs in anything else is dropped. So neither tomlkit nor a line
that looks like something else, such as one inside of a long string, can change more than was asked.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import tomlkit
from tomlkit.items import Array, InlineTable, Item

from psiphon_vpn.toml_lines import Statement, parse_toml, split_statements

Key = tuple[str, ...]
_ABSENT: Final = object()


class NotEditable(Exception):
    """The text is written in a way in which this change cannot be made without changing more."""


def set_value(text: str, key: Key, value: object) -> str:
    """The text with a value for a key.

    Args:
        text: a TOML document.
        key: names from the outermost table to the key.
        value: text, numbers, lists and tables.

    Raises:
        ValueError: the text is not TOML.
        NotEditable: it cannot be done without changing more; or a value is where a table of the key should be.
    """
    document = parse_toml(text)
    before = _find(document, key)
    if _are_same(before, value):
        return text
    ways = [_add_lines, _add_by_tomlkit] if before is _ABSENT else [_replace_by_tomlkit, _remove_and_add]
    return _choose(text, document, key, value, ways)


def unset_value(text: str, key: Key) -> str:
    """The text without a key; raises like `set_value`."""
    document = parse_toml(text)
    if _find(document, key) is _ABSENT:
        return text
    return _choose(text, document, key, _ABSENT, [_remove_lines, _remove_by_tomlkit])


def render_value(value: object) -> str:
    """A value as TOML, on one line."""
    return _make_item(value).as_string()


_Way = Callable[[str, Key, object], Iterator[str]]


def _choose(text: str, document: Mapping[str, object], key: Key, value: object, ways: Sequence[_Way]) -> str:
    # Lines that end with CR LF become others and back, so that new lines end like them.
    is_crlf = "\r\n" in text and text.count("\r\n") == text.count("\n") == text.count("\r")
    plain = text.replace("\r\n", "\n") if is_crlf else text
    wanted = _change(document, key, value)
    for way in ways:
        try:
            for found in way(plain, key, value):
                if _differs_only(plain, found, key, wanted):
                    return found.replace("\n", "\r\n") if is_crlf else found
        except Exception:  # noqa: BLE001, S112  whatever tomlkit stumbles over: the next way
            continue
    raise NotEditable


# -- ways -------------------------------------------------------------------------------------------------------------


def _add_lines(text: str, key: Key, value: object) -> Iterator[str]:
    """Insert a line: below the commented example of this key, or after what is near it."""
    lines = text.split("\n")
    statements = list(split_statements(text))
    rest = f" = {render_value(value)}"
    line = _render_name(key[-1]) + rest
    table = key[:-1]
    inside = [statement for statement in statements if statement.table == table]
    first, last = _find_section(statements, table, len(lines))
    example = re.compile(rf"\s*#\s*{re.escape(key[-1])}\s*=")
    for number in range(first, last):
        if example.match(lines[number]):
            yield _insert(lines, number + 1, line)
    if inside:
        yield _insert(lines, inside[-1].last, line)
    elif not table:
        yield _insert_on_top(lines, last, line)
    near = [statement for statement in statements if statement.defines(table) and not statement.is_header]
    if table and near:
        prefix = table[len(near[-1].table) :]
        yield _insert(lines, near[-1].last, ".".join(map(_render_name, (*prefix, key[-1]))) + rest)
    if table:
        header = f"[{'.'.join(map(_render_name, table))}]"
        kept = text if not text or text.endswith("\n") else f"{text}\n"
        yield f"{kept}{'' if not kept or kept.endswith(chr(10) * 2) else chr(10)}{header}\n{line}\n"


def _find_section(statements: Sequence[Statement], table: Key, count: int) -> tuple[int, int]:
    """The lines of a table, from and to, counted from 0; the outermost table ends at the first header."""
    begin, end = (0, count) if not table else (count, count)
    for statement in statements:
        if not statement.is_header:
            continue
        if table and statement.table == table:
            begin, end = statement.last, count
        elif begin < statement.first <= end:
            return begin, statement.first - 1
    return begin, end


def _insert(lines: Sequence[str], place: int, line: str) -> str:
    after = list(lines[place:]) or [""]
    return "\n".join([*lines[:place], line, *after])


def _insert_on_top(lines: Sequence[str], end: int, line: str) -> str:
    """Before the first header, and before the comment that stands directly above it."""
    place = end
    if place < len(lines):
        while place and lines[place - 1].lstrip().startswith("#"):
            place -= 1
        after = ["", *lines[place:]]
        return "\n".join([*lines[:place], line, *after])
    while place and not lines[place - 1].strip():
        place -= 1
    return _insert(lines, place, line)


def _remove_lines(text: str, key: Key, _value: object) -> Iterator[str]:
    """Take the lines out that define only this key; comments between them stay."""
    gone: set[int] = set()
    for statement in split_statements(text):
        if statement.defines(key) and not _leaves(_change(statement.content or {}, key, _ABSENT)):
            gone.update(range(statement.first - 1, statement.last))
    lines = text.split("\n")
    yield "\n".join(line for number, line in enumerate(lines) if number not in gone)


def _replace_by_tomlkit(text: str, key: Key, value: object) -> Iterator[str]:
    document = tomlkit.parse(text)
    _walk(document, key[:-1])[key[-1]] = _make_item(value)
    yield tomlkit.dumps(document)


def _add_by_tomlkit(text: str, key: Key, value: object) -> Iterator[str]:
    document = tomlkit.parse(text)
    place: Any = document
    for name in key[:-1]:
        if name not in place:
            place[name] = tomlkit.inline_table()
        place = place[name]
    place[key[-1]] = _make_item(value)
    yield tomlkit.dumps(document)


def _remove_by_tomlkit(text: str, key: Key, _value: object) -> Iterator[str]:
    document = tomlkit.parse(text)
    del _walk(document, key[:-1])[key[-1]]
    yield tomlkit.dumps(document)


def _remove_and_add(text: str, key: Key, value: object) -> Iterator[str]:
    without = unset_value(text, key)
    for way in (_add_lines, _add_by_tomlkit):
        yield from way(without, key, value)


def _walk(document: Any, path: Key) -> Any:
    for name in path:
        document = document[name]
    return document


def _make_item(value: object) -> Item:
    if isinstance(value, Mapping):
        table: InlineTable = tomlkit.inline_table()
        for name, field in value.items():
            table.append(name, _make_item(field))
        return table
    if isinstance(value, list | tuple):
        array: Array = tomlkit.array()
        for entry in value:
            array.append(_make_item(entry))
        return array
    return tomlkit.item(value)


def _render_name(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else render_value(name)


# -- the comparison ---------------------------------------------------------------------------------------------------


def _differs_only(before: str, after: str, key: Key, wanted: Mapping[str, object]) -> bool:
    """Whether a result has the wanted values, and each line of before that does not belong to the key."""
    try:
        found = parse_toml(after)
    except ValueError:
        return False
    if not _are_same(_without_empty(found, key), _without_empty(wanted, key)):
        return False
    lines = before.split("\n")
    own: set[int] = set()
    for statement in split_statements(before):
        here = range(statement.first - 1, statement.last)
        # A table in braces has the keys of others in its line too; their values were compared above.
        braces = not statement.is_header and any("{" in lines[number] for number in here)
        if statement.defines(key) or (braces and statement.defines(key[:1])):
            own.update(here)
    kept = (line for number, line in enumerate(lines) if number not in own)
    rest = iter(after.split("\n"))
    # Each is found after the one before it: "in" takes from the iterator up to the match.
    return all(line in rest for line in kept)


def _change(document: Mapping[str, object], key: Key, value: object) -> dict[str, object]:
    changed = copy.deepcopy(dict(document))
    place: Any = changed
    for name in key[:-1]:
        place = place.setdefault(name, {})
        if not isinstance(place, dict):
            raise NotEditable
    if value is _ABSENT:
        place.pop(key[-1], None)
    else:
        place[key[-1]] = value
    return changed


def _find(document: Mapping[str, object], key: Key) -> object:
    place: object = document
    for name in key:
        if not isinstance(place, Mapping) or name not in place:
            return _ABSENT
        place = place[name]
    return place


def _leaves(document: Mapping[str, object]) -> bool:
    """Whether anything is left but empty tables."""
    return any(_leaves(value) if isinstance(value, Mapping) else True for value in document.values())


def _without_empty(document: Mapping[str, object], key: Key) -> dict[str, object]:
    """The document with the key last in its table, and without the tables above it that are empty then."""
    (name, *rest) = key
    kept = {other: value for other, value in document.items() if other != name}
    value = document.get(name, _ABSENT)
    if rest and isinstance(value, Mapping):
        value = _without_empty(value, tuple(rest)) or _ABSENT
    return kept if value is _ABSENT else {**kept, name: value}


def _are_same(one: object, other: object) -> bool:
    """Whether two values are the same to the last bit and in the same order: 1, 1.0 and true are three."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return list(one) == list(other) and all(_are_same(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_are_same, one, other))
    # repr, since nan is not equal to itself, and 0.0 is to -0.0.
    return type(one) is type(other) and repr(one) == repr(other)
