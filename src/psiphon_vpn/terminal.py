# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What the quick commands need of a terminal: its size, colours, and printing; all as click does it."""

from __future__ import annotations

import codecs
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, TextIO

COLORS: Final = {"red": 31, "green": 32, "yellow": 33}
"""Foreground colours (ECMA-48, SGR)."""
_BOLD: Final = "\x1b[1m"
_DIM: Final = "\x1b[2m"
_RESET: Final = "\x1b[0m"
_CLEAR: Final = "\x1b[2J\x1b[1;1H"
_SEQUENCE: Final = r"\x1b\[[0-?]*[ -/]*[@-~]"
"""A control sequence of ECMA-48."""
_FALLBACK: Final = (80, 24)


def find_size() -> tuple[int, int]:
    """Columns and lines of the terminal, as shutil.get_terminal_size() finds them.

    COLUMNS and LINES come first, then the terminal of standard output; without one it is 80 by 24.
    """
    columns, lines = _read_number("COLUMNS"), _read_number("LINES")
    if columns <= 0 or lines <= 0:
        try:
            assert sys.__stdout__ is not None
            found = os.get_terminal_size(sys.__stdout__.fileno())
        except (AttributeError, AssertionError, ValueError, OSError):
            # Standard output is closed, or no terminal.
            found = os.terminal_size(_FALLBACK)
        columns = columns if columns > 0 else found.columns or _FALLBACK[0]
        lines = lines if lines > 0 else found.lines or _FALLBACK[1]
    return columns, lines


def _read_number(name: str) -> int:
    try:
        return int(os.environ[name])
    except (KeyError, ValueError):
        return 0


def style(text: str, *, color: str | None = None, bold: bool = False, dim: bool = False) -> str:
    """A text with the control sequences of a style; `echo` removes them where nobody would see a style."""
    lead = f"\x1b[{COLORS[color]}m" if color is not None else ""
    return f"{lead}{_BOLD if bold else ''}{_DIM if dim else ''}{text}{_RESET}"


def echo(text: str, *, err: bool = False, newline: bool = True) -> None:
    """Print a text at once: to standard output, or to standard error. Styles only reach a terminal.

    Raises:
        OSError: it cannot be written; BrokenPipeError: nobody reads it any more.
    """
    stream: TextIO | None = sys.stderr if err else sys.stdout
    if stream is None:  # the program was started with this descriptor closed
        return
    if "\x1b" in text and not _is_terminal(stream):
        import re

        text = re.sub(_SEQUENCE, "", text)
    _use_utf8(stream)
    stream.write(text + "\n" if newline else text)
    stream.flush()


def clear() -> None:
    """Clear the terminal; does nothing where standard output is none."""
    if sys.stdout is not None and _is_terminal(sys.stdout):
        echo(_CLEAR, newline=False)


def _use_utf8(stream: TextIO) -> None:
    """A stream whose encoding is ASCII was started with a wrong environment: names and sentences are more than that."""
    try:
        is_ascii = codecs.lookup(stream.encoding).name == "ascii"
    except (AttributeError, TypeError, LookupError):
        return
    if is_ascii:
        stream.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[attr-defined]  # of io.TextIOWrapper


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except (AttributeError, ValueError):
        return False
