# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds faults that parsers do not name: what editors do to a file, and other kinds of file in the place of TOML."""

from __future__ import annotations

import codecs
import json
import re
from dataclasses import dataclass
from typing import Final

from psiphon_vpn.i18n import _

_QUOTES: Final = "\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f\u2039\u203a\u00ab\u00bb\u2032\u2033\uff02\uff07"
_COMPRESSED: Final = (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda", b"\x1f\x8b")
"""How zlib streams and gzip files begin (RFC 1950, RFC 1952)."""
_JSON_NAME: Final = re.compile(r'"([A-Za-z0-9_]{1,60})"\s*:')
_JSON_LINE: Final = re.compile(r'\s*"[^"]*"\s*:')
_COLON_LINE: Final = re.compile(r"\s*[A-Za-z0-9_.-]+\s*:")
_CAPITAL_LINE: Final = re.compile(r"\s*[A-Za-z0-9_.-]+\s*=\s*(?i:true|false|yes|no|on|off)\s*(#.*)?$")
_BARE_LINE: Final = re.compile(r"\s*[A-Za-z0-9_.-]+\s*=\s*[A-Za-z][^\s\"'\[{]*\s*(#.*)?$")
_HEX: Final = re.compile(r"[0-9A-Fa-f]{100}")
_CORE_NAMES: Final = frozenset(
    {
        "propagationchannelid",
        "sponsorid",
        "remoteserverlisturl",
        "remoteserverlisturls",
        "remoteserverlistsignaturepublickey",
        "localhttpproxyport",
        "localsocksproxyport",
    }
)
"""Names of the tunnel program's own configuration, in small letters: it compares names without regard to case."""
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
        if content.startswith(_COMPRESSED):
            why = _("this is compressed data, such as a list of servers, and no text")
            return OddText(why=why, next_step=_import(), line=1)
        line = content.count(b"\n", 0, error.start) + 1
        return OddText(why=_("this is not UTF-8 text"), next_step=_save_as(), line=line)
    return None


def _save_as() -> str:
    return _("Save the file as UTF-8; the lock stays closed until then.")


def _import() -> str:
    return _("Move it elsewhere, and see what is in it with: sudo psiphon-vpn servers import FILE")


def find_other_format(text: str, line: int) -> OddText | None:
    """What a text is that is no TOML: another kind of file, or a line of one; None if it looks like TOML.

    Args:
        text: content of the file.
        line: the line at which the TOML parser failed, counted from 1.
    """
    if (whole := _name_whole(text.lstrip("\ufeff \t\r\n"))) is not None:
        return whole
    lines = text.split("\n")
    found = lines[line - 1] if line <= len(lines) else ""
    for pattern, why in (
        (_JSON_LINE, _("this line is JSON; TOML has: NAME = VALUE, without a comma at the end")),
        (_COLON_LINE, _("there is a colon in the place of the equals sign")),
        (_CAPITAL_LINE, _("a switch is true or false, in small letters")),
        (_BARE_LINE, _('text must be in quotation marks, such as egress_region = "CA"')),
    ):
        if pattern.match(found):
            return OddText(why=why, next_step=_correct(), line=line)
    return None


def _name_whole(text: str) -> OddText | None:
    if text.startswith("{") and _JSON_NAME.search(text):
        why = _("this is JSON, and this file is TOML, with a line NAME = VALUE for each setting")
        step = _("Begin with an empty file, and set each with: sudo psiphon-vpn config set NAME VALUE")
        if _is_core_config(text):
            named = _("this is a psiphon.config, a file of other Psiphon programs, and no TOML")
            return OddText(why=named, next_step=_import(), line=1)
        return OddText(why=why, next_step=step, line=1)
    if text.startswith("<"):
        step = _("Take it out: an empty file gives the defaults.")
        return OddText(why=_("this is a web page (HTML or XML)"), next_step=step, line=1)
    if _HEX.match(text):
        return OddText(why=_("this is a server entry, or a list of them"), next_step=_import(), line=1)
    return None


def _is_core_config(text: str) -> bool:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = dict.fromkeys(_JSON_NAME.findall(text))
    return isinstance(found, dict) and any(name.casefold() in _CORE_NAMES for name in found)


def _correct() -> str:
    return _("Correct this line, with: sudo psiphon-vpn config edit. The lock stays closed until then.")


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
    if "\ufeff" in code:
        why = _("there is a byte order mark (BOM), which may only be at the beginning of a file")
        return OddText(why=why, next_step=step, line=line)
    if _INVISIBLE.search(code):
        why = _("there is a character that cannot be seen, such as a no-break space")
        return OddText(why=why, next_step=step, line=line)
    return None
