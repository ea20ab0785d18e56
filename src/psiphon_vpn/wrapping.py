# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Sentences at the width of a terminal, with every word whole: commands and paths in them are copied."""

from __future__ import annotations

import textwrap

from psiphon_vpn.terminal import find_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, TextIO

MIN_WIDTH: Final = 40
_POINT: Final = "- "


def wrap(text: str, width: int, *, first: str = "", rest: str = "") -> list[str]:
    """Break a text into lines.

    Args:
        text: one paragraph.
        width: columns. A longer word makes a longer line.
        first: what the first line begins with.
        rest: what each other line begins with.
    """
    return textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )


def fit(text: str, stream: TextIO) -> str:
    """A paragraph at the width of the terminal that it goes to; on one line if that is a file or a program.

    The lines of a point, which begins with "- ", are indented.
    """
    if not stream.isatty():
        return text
    width = max(MIN_WIDTH, find_size()[0])
    return "\n".join(wrap(text, width, rest="  " if text.startswith(_POINT) else ""))
