"""Finds the line of a key or an error in a TOML file: tomllib gives values without their lines.

It splits the file into statements by extending each one until tomllib accepts it. So there is no second TOML parser
that could disagree with the first (TOML 1.0.0, https://toml.io/en/v1.0.0).
"""

import re
import tomllib
from collections.abc import Iterator, Sequence
from typing import Final

# Extending a statement is quadratic in its lines. For longer ones the result is the first line.
MAX_STATEMENT_LINES: Final = 300

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
    for line, _table, statement in _split_statements(text):
        if statement is None:
            return line
    return _count_lines(text)


def find_key_line(text: str, path: Sequence[str]) -> int:
    """Return the line of the statement that first defines a key of a document that parses.

    Args:
        text: the document.
        path: names from the outermost table to the key.

    Returns:
        A line counted from 1; the first line if the key is not found.
    """
    for line, table, statement in _split_statements(text):
        if statement is not None and _has_path(_nest(table, statement), path):
            return line
    return 1


def _count_lines(text: str) -> int:
    return max(1, len(text.rstrip("\n").split("\n")))


def _split_statements(text: str) -> Iterator[tuple[int, tuple[str, ...], dict[str, object] | None]]:
    """Yield (first line, table that it is in, what it defines or None if it does not parse)."""
    lines = text.replace("\r\n", "\n").split("\n")
    table: tuple[str, ...] = ()
    start = 0
    while start < len(lines):
        for end in range(start + 1, min(len(lines), start + MAX_STATEMENT_LINES) + 1):
            try:
                statement = parse_toml("\n".join(lines[start:end]))
            except ValueError:
                continue
            break
        else:
            yield start + 1, table, None
            start += 1
            continue
        if lines[start].lstrip(" \t").startswith("["):
            table = _header_path(statement)
            yield start + 1, (), statement
        elif statement:
            yield start + 1, table, statement
        start = end


def _header_path(statement: dict[str, object]) -> tuple[str, ...]:
    path: list[str] = []
    value: object = statement
    while isinstance(value, dict) and value:
        (name, value), *_rest = value.items()
        path.append(name)
    return tuple(path)


def _nest(table: tuple[str, ...], statement: dict[str, object]) -> object:
    nested: object = statement
    for name in reversed(table):
        nested = {name: nested}
    return nested


def _has_path(value: object, path: Sequence[str]) -> bool:
    for name in path:
        if not isinstance(value, dict) or name not in value:
            return False
        value = value[name]
    return True
