# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""One normal form for all texts that Unicode considers equal, whatever their case. Pure.

An accented letter is one character or several (Unicode Standard Annex 15): keyboards, file systems and programs write
it in different ways, and a Vietnamese keyboard (Windows-1258) in a third, half composed.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

FORMS: Final = ("NFC", "NFD", "NFKC", "NFKD")


@dataclass(frozen=True)
class Folded:
    """A text in the normal form.

    Attributes:
        text: the normal form.
        starts: where in the original the letter begins, with all its marks, that each character comes from.
        ends: where that letter ends.
    """

    text: str
    starts: Sequence[int]
    ends: Sequence[int]

    def locate(self, start: int, end: int) -> tuple[int, int]:
        """Where in the original a non-empty part of `text` is."""
        return self.starts[start], self.ends[end - 1]


def fold_letter(text: str) -> str:
    """The normal form of a letter with its marks, or of a whole text.

    It is the compatibility caseless match of the Unicode Standard, 3.13, D146, without what has no form of its own
    (a joiner, a mark of direction): IDNA leaves that out as well (RFC 3454, B.1).
    """
    canonical = unicodedata.normalize("NFD", text).casefold()
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", canonical).casefold())
    return "".join(char for char in folded if unicodedata.category(char) != "Cf")


def fold(text: str) -> Folded:
    """A text in the normal form, with the origin of each character."""
    pieces, starts, ends, position = list[str](), list[int](), list[int](), 0
    while position < len(text):
        end = position + 1
        while end < len(text) and unicodedata.combining(text[end]):
            end += 1
        piece = fold_letter(text[position:end])
        pieces.append(piece)
        starts += [position] * len(piece)
        ends += [end] * len(piece)
        position = end
    return Folded("".join(pieces), starts, ends)


def list_forms(text: str) -> frozenset[str]:
    """A text in each normal form, and as it is."""
    return frozenset({text, *(unicodedata.normalize(form, text) for form in FORMS)})
