# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The forms in which programs write a value without its letters: escapes, numbers, lists of numbers, base64. Pure.

Two ways back. A *view* is a line with the escapes of one kind undone, so that a search for a text in it succeeds.
Digits *hide* bytes: these are collected, with the origin of each, and searched for known bytes.
"""

from __future__ import annotations

import base64
import binascii
import bisect
import contextlib
import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

LEAST_BYTES: Final = 3
"""Fewer hidden bytes would match everywhere by chance."""
LEAST_NUMBER: Final = 10_000
"""Smaller numbers are counts of something, even if they could be an address."""

_HEX: Final = r"[0-9A-Fa-f]"
_REST: Final = (
    rf"\\u(?P<high>[Dd][89ABab]{_HEX}{{2}})\\u(?P<low>[Dd][C-Fc-f]{_HEX}{{2}})|\\u(?P<short>{_HEX}{{4}})"
    rf"|\\U(?P<long>{_HEX}{{8}})|\\(?P<octal>[0-3][0-7]{{2}})|\\(?P<same>[^\w\s])"
)
_BACKSLASH: Final = re.compile(rf"\\x(?P<byte>{_HEX}{{2}})|{_REST}")
_CODE_POINT: Final = re.compile(rf"\\x(?P<point>{_HEX}{{2}})|{_REST}")
"""In a text of Python's the two digits are a character, elsewhere a byte of one."""
_PERCENT: Final = re.compile(rf"%(?P<byte>{_HEX}{{2}})")
_QUOTED: Final = re.compile(rf"=(?P<byte>{_HEX}{{2}})")
_OBJECT_PATH: Final = re.compile(rf"_(?P<byte>{_HEX}{{2}})")
_ENTITY: Final = re.compile(r"&#(?:x(?P<long>[0-9A-Fa-f]{1,6})|(?P<decimal>\d{1,7}));")
ESCAPES: Final = (_BACKSLASH, _CODE_POINT, _PERCENT, _QUOTED, _OBJECT_PATH, _ENTITY)
"""C, Python, JSON, systemd-escape(1) and /proc/mounts; RFC 3986; RFC 2045, 6.7; D-Bus object paths; XML."""

_DIGIT_RUN: Final = re.compile(rf"(?:0[xX]|\\x)?{_HEX}(?:(?:[:\-.,;_/ ]|, |\s)?(?:0[xX]|\\x)?{_HEX})+")
_NUMBER_LIST: Final = re.compile(r"(?<!\d)\d{1,3}(?:[^0-9A-Za-z]{1,3}\d{1,3})+(?!\d)")
_BASE64: Final = re.compile(r"[A-Za-z0-9+/_-]{4,}")
_PREFIX: Final = re.compile(r"0[xX]|\\x")


@dataclass(frozen=True)
class View:
    """A line with escapes undone.

    Attributes:
        text: what it says.
        starts: where in the original each character begins; one more at the end.
        escaped: whether each character was written by an escape.
        raw: its bytes, ASCII letters in lower case, each as the character of that number.
        places: where in the original each byte begins; one more at the end.
    """

    text: str
    starts: Sequence[int]
    escaped: Sequence[bool]
    raw: str
    places: Sequence[int]

    def locate(self, start: int, end: int) -> tuple[int, int]:
        """Where in the original a part of `text` is."""
        return self.starts[start], self.starts[end]

    def locate_bytes(self, start: int, end: int) -> tuple[int, int]:
        """Where in the original a part of `raw` is."""
        return self.places[start], self.places[end]


def lower_bytes(value: bytes) -> str:
    """Bytes as characters of the same number, ASCII letters in lower case."""
    return value.lower().decode("latin-1")


def _read_escape(match: re.Match[str]) -> bytes:
    found = match.groupdict()
    if found.get("byte"):
        return bytes.fromhex(found["byte"])
    if found.get("high"):
        return chr(0x10000 + ((int(found["high"], 16) - 0xD800) << 10) + int(found["low"], 16) - 0xDC00).encode()
    if found.get("octal"):
        return bytes([int(found["octal"], 8)])
    if found.get("same"):
        return found["same"].encode()
    digits = found.get("point") or found.get("short") or found.get("long")
    point = int(digits, 16) if digits else int(found["decimal"])
    return chr(point if point < 0x110000 and not 0xD800 <= point < 0xE000 else 0xFFFD).encode()


def undo_escapes(line: str, offset: int = 0) -> Iterator[View]:
    """Every view of a line that is not the line itself.

    Args:
        line: what is looked at; a UTF-8 sequence may be written in several escapes.
        offset: where in the whole text it begins.
    """
    for escapes in ESCAPES:
        if escapes.search(line) is not None:
            yield _undo(line, escapes, offset)


def _undo(line: str, escapes: re.Pattern[str], offset: int) -> View:
    raw, places, marks, position = bytearray(), list[int](), list[bool](), 0
    for match in [*escapes.finditer(line), None]:
        for index in range(position, match.start() if match else len(line)):
            piece = line[index].encode("utf-8", "replace")
            raw += piece
            places += [offset + index] * len(piece)
            marks += [False] * len(piece)
        if match is not None:
            piece = _read_escape(match)
            raw += piece
            places += [offset + match.start()] * len(piece)
            marks += [True] * len(piece)
            position = match.end()
    text = raw.decode("utf-8", "surrogateescape")
    starts, escaped, at = list[int](), list[bool](), 0
    for char in text:
        starts.append(places[at])
        escaped.append(marks[at])
        at += len(char.encode("utf-8", "surrogateescape"))
    end = offset + len(line)
    return View(text, [*starts, end], escaped, lower_bytes(bytes(raw)), [*places, end])


@dataclass(frozen=True)
class _Run:
    """Bytes, or digits, in a row, and where in the text each of them stands."""

    offset: int
    data: str
    locate: Callable[[int, int], tuple[int, int]]


@dataclass
class _Haystack:
    """Runs in one long text of characters below 256, so that to look for something is one search."""

    runs: list[_Run] = field(default_factory=list)
    length: int = 0

    def add(self, data: str, locate: Callable[[int, int], tuple[int, int]]) -> None:
        self.runs.append(_Run(self.length, data, locate))
        self.length += len(data) + 1

    def seal(self) -> tuple[str, list[int]]:
        return "\u0100".join(run.data for run in self.runs), [run.offset for run in self.runs]


class Hidden:
    """What a text holds in digits, in base64 and in escapes."""

    def __init__(self, text: str, views: Iterable[View]) -> None:
        digits, numbers = _Haystack(), _Haystack()
        for match in _DIGIT_RUN.finditer(text):
            _add_digits(digits, match)
        for match in _NUMBER_LIST.finditer(text):
            _add_numbers(numbers, match)
        for match in _BASE64.finditer(text):
            _add_base64(numbers, match)
        for view in views:
            numbers.add(view.raw, view.locate_bytes)
        self._digits, self._numbers = (digits, *digits.seal()), (numbers, *numbers.seal())

    def find(self, value: bytes) -> Iterator[tuple[int, int]]:
        """Where these bytes stand, written in hexadecimal digits, as a list of numbers, in base64, or escaped.

        The case of ASCII letters is not looked at, except in hexadecimal digits.
        """
        if len(value) < LEAST_BYTES:
            return
        yield from _search(*self._digits, value.hex())
        yield from _search(*self._numbers, lower_bytes(value))


def _search(haystack: _Haystack, text: str, offsets: list[int], needle: str) -> Iterator[tuple[int, int]]:
    at = text.find(needle)
    while at >= 0:
        run = haystack.runs[bisect.bisect_right(offsets, at) - 1]
        yield run.locate(at - run.offset, at - run.offset + len(needle))
        at = text.find(needle, at + 1)


def _add_digits(haystack: _Haystack, match: re.Match[str]) -> None:
    text, start = match[0], match.start()
    prefixes = {index for found in _PREFIX.finditer(text) for index in range(found.start(), found.end())}
    places = [index for index, char in enumerate(text) if char in "0123456789abcdefABCDEF" and index not in prefixes]
    if len(places) < 2 * LEAST_BYTES:
        return
    data = "".join(text[index] for index in places).lower()
    haystack.add(data, lambda first, last: (start + places[first], start + places[last - 1] + 1))


def _add_numbers(haystack: _Haystack, match: re.Match[str]) -> None:
    start = match.start()
    numbers = [(int(found[0]), start + found.start(), start + found.end()) for found in re.finditer(r"\d+", match[0])]
    # What is no byte cannot be a part of anything that is looked for.
    data = "".join(lower_bytes(bytes([number])) if number < 256 else "\u0101" for number, _, _ in numbers)
    haystack.add(data, lambda first, last: (numbers[first][1], numbers[last - 1][2]))


def _add_base64(haystack: _Haystack, match: re.Match[str]) -> None:
    text = match[0].replace("-", "+").replace("_", "/")
    # What stands before it may look like a part of it: "/" does.
    for shift in range(4):
        part = text[shift:]
        if len(part) >= 4:
            part += "A" * (-len(part) % 4)
            try:
                data = base64.b64decode(part)
            except (binascii.Error, ValueError):
                continue
            haystack.add(lower_bytes(data), lambda _first, _last: match.span())


def spell_numbers(address: str) -> frozenset[str]:
    """An IPv4 address as one number or fewer than four, in either byte order, without what stands before a number.

    Sources: inet_aton(3) for the short forms; /proc/net/route for the order of bytes.
    """
    parts = ipaddress.IPv4Address(address).packed
    found: set[str] = set()
    for number in (int.from_bytes(parts, "big"), int.from_bytes(parts, "little")):
        if number >= LEAST_NUMBER:
            found |= {f"{number}", f"{(1 << 32) - number}", f"{number:x}", f"{number:o}"}
    a, b, c, d = parts
    # With a last number below 256 it could as well be a version.
    found |= {f"{a}.{b}.{(c << 8) + d}"} if c else set()
    found |= {f"{a}.{(b << 16) + (c << 8) + d}"} if b or c else set()
    return frozenset(found)


def spell_hardware(address: str) -> tuple[bytes, bytes]:
    """A hardware address as bytes, and as the identifier that IPv6 addresses derive from it (RFC 4291, appendix A).

    Raises:
        ValueError: it is none.
    """
    raw = bytes.fromhex(re.sub(r"[^0-9A-Fa-f]", "", address))
    return raw, (bytes([raw[0] ^ 2]) + raw[1:3] + b"\xff\xfe" + raw[3:] if len(raw) == 6 else raw)


def spell_name(name: str) -> frozenset[str]:
    """Other texts that say the same name: ASCII for a domain (RFC 3492), and what programs cut off."""
    found = {name, name.split(".", 1)[0]}
    labels = name.split(".")
    if not name.isascii():
        for encoded in (name.encode("punycode"), *(label.encode("punycode") for label in labels)):
            found |= {encoded.decode("ascii"), f"xn--{encoded.decode('ascii').rstrip('-')}"}
        with contextlib.suppress(UnicodeError):
            found.add(name.encode("idna").decode("ascii"))
    found |= {f"{part[:7]}+" for part in found if len(part) > 8}  # ps(1)
    found |= {part[:15] for part in found if len(part) > 15}  # NetBIOS (RFC 1001)
    return frozenset(part for part in found if part)
