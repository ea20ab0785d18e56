"""Finds faults that editors cause and parsers do not name: encodings, line ends, quotation marks, odd characters."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from typing import Final

from psiphon_vpn.i18n import _

_QUOTES: Final = "\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f\u2039\u203a\u00ab\u00bb\u2032\u2033\uff02\uff07"
_INVISIBLE: Final = re.compile("[\u00a0\u00ad\u1680\u2000-\u200f\u2028-\u202f\u205f-\u2064\u3000\ufeff]")


@dataclass(frozen=True, kw_only=True)
class OddText:
    """A fault: why the text cannot be read, what to do, and the line, counted from 1, or None for the whole file."""

    why: str
    next_step: str
    line: int | None = None


def find_wrong_encoding(content: bytes) -> OddText | None:
    """Why the bytes are not UTF-8; None if they are."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return OddText(why=_("this is UTF-16 text, not UTF-8"), next_step=_save_as())
    try:
        content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        return OddText(why=_("this is not UTF-8 text"), next_step=_save_as(), line=line)
    return None


def _save_as() -> str:
    return _("Save the file as UTF-8; the lock stays closed until then.")


def find_odd_text(text: str, line: int) -> OddText | None:
    """The fault in the line at which a TOML parser failed; None if that line looks ordinary.

    Args:
        text: content of the file.
        line: the line at which the parser failed, counted from 1.
    """
    step = _("Type this line anew; the lock stays closed until then.")
    lines = text.split("\n")
    found = lines[line - 1] if line <= len(lines) else ""
    if "\0" in found:
        why = _("there are zero bytes, as after a power cut")
        return OddText(why=why, next_step=_("Take them out, or write the file anew."), line=line)
    if "\r" in found.removesuffix("\r"):
        why = _("its lines end with a carriage return alone")
        return OddText(why=why, next_step=_("Save the file with the line ends of Unix."), line=line)
    code = found.partition("#")[0]
    if any(quote in code for quote in _QUOTES):
        why = _("there are typographic quotation marks; TOML has straight ones: \" and '")
        return OddText(why=why, next_step=step, line=line)
    if _INVISIBLE.search(code):
        why = _("there is a character that cannot be seen, such as a no-break space")
        return OddText(why=why, next_step=step, line=line)
    return None
