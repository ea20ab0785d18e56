# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The form of a bundle: a tar archive (POSIX ustar) with the ordinary files `core` and `list`, or one of them.

Pure. Reading takes place in a process without privileges (`bundle.py`), which answers with places and sizes alone: no
name, mode, owner or link of the archive is ever used, and nothing is unpacked, so that a hostile one has nothing to
write with.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

BLOCK: Final = 512
CORE: Final = "core"
LIST: Final = "list"
MAX_CORE: Final = 256 << 20
MAX_LIST: Final = 32 << 20
MAX_SIZES: Final[Mapping[str, int]] = MappingProxyType({CORE: MAX_CORE, LIST: MAX_LIST})
"""Bytes of each part."""
MAX_BUNDLE: Final = MAX_CORE + MAX_LIST + 64 * 1024
"""Bytes of a whole bundle."""
_MAGIC: Final = b"ustar"
_FILE_TYPES: Final = frozenset({b"0", b"\0"})
_COMPRESSED: Final = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"PK\x03\x04", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf")


class BundleFlaw(enum.StrEnum):
    """What can be wrong with a bundle."""

    NOT_A_BUNDLE = "not_a_bundle"
    COMPRESSED = "compressed"
    TRUNCATED = "truncated"
    DAMAGED = "damaged"
    """A check sum or a number in it is wrong."""
    OTHER_CONTENT = "other_content"
    """Something else than two ordinary files: a link, a directory, another name."""
    TWICE = "twice"
    TOO_LARGE = "too_large"
    EMPTY = "empty"


class NotABundleError(ValueError):
    """It cannot be used, by `flaw`."""

    def __init__(self, flaw: BundleFlaw) -> None:
        super().__init__(str(flaw))
        self.flaw = flaw


def render_bundle(parts: Mapping[str, bytes]) -> bytes:
    """A bundle; the same parts give the same bytes.

    Args:
        parts: by CORE and LIST.

    Raises:
        NotABundleError: EMPTY or TOO_LARGE.
    """
    if not parts:
        raise NotABundleError(BundleFlaw.EMPTY)
    blocks: list[bytes] = []
    for name in (CORE, LIST):
        if (content := parts.get(name)) is None:
            continue
        if not 0 < len(content) <= MAX_SIZES[name]:
            raise NotABundleError(BundleFlaw.TOO_LARGE if content else BundleFlaw.EMPTY)
        blocks += [_render_header(name, len(content)), content, bytes(-len(content) % BLOCK)]
    return b"".join((*blocks, bytes(2 * BLOCK)))


def _render_header(name: str, size: int) -> bytes:
    """A header without a time, an owner or anything else of the machine that makes it."""
    fields = (
        name.encode().ljust(100, b"\0"),
        b"0000644\0",
        b"0000000\0",
        b"0000000\0",
        f"{size:011o}\0".encode(),
        b"00000000000\0",
        b" " * 8,  # the check sum counts itself as spaces
        b"0",
        bytes(100),
        b"ustar\00000",
        bytes(64),  # names of user and group
        b"0000000\0",
        b"0000000\0",
        bytes(167),
    )
    header = b"".join(fields)
    return header[:148] + f"{sum(header):06o}\0 ".encode() + header[156:]


def looks_like_bundle(content: bytes) -> bool:
    """Whether it is an archive of this form, good or bad."""
    return content[257:262] == _MAGIC


def find_parts(content: bytes) -> dict[str, tuple[int, int]]:
    """Where the parts are: offset and size of each, by name.

    Raises:
        NotABundleError: the only exception, whatever the content.
    """
    if len(content) > MAX_BUNDLE:
        raise NotABundleError(BundleFlaw.TOO_LARGE)
    if content.startswith(_COMPRESSED):
        raise NotABundleError(BundleFlaw.COMPRESSED)
    found: dict[str, tuple[int, int]] = {}
    offset = 0
    while True:
        header = content[offset : offset + BLOCK]
        if offset == 0 and not looks_like_bundle(header):
            raise NotABundleError(BundleFlaw.NOT_A_BUNDLE)
        if len(header) < BLOCK:
            raise NotABundleError(BundleFlaw.TRUNCATED)
        if not any(header):
            break
        name, size = _read_header(header)
        offset += BLOCK
        if name in found:
            raise NotABundleError(BundleFlaw.TWICE)
        if size > MAX_SIZES[name]:
            raise NotABundleError(BundleFlaw.TOO_LARGE)
        if size == 0:
            raise NotABundleError(BundleFlaw.EMPTY)
        if offset + size > len(content):
            raise NotABundleError(BundleFlaw.TRUNCATED)
        found[name] = (offset, size)
        offset += size + -size % BLOCK
    # Nothing may follow the end that a reader of this form would not see, and another might.
    if content[offset:].strip(b"\0"):
        raise NotABundleError(BundleFlaw.OTHER_CONTENT)
    if not found:
        raise NotABundleError(BundleFlaw.EMPTY)
    return found


def _read_header(header: bytes) -> tuple[str, int]:
    summed = _read_octal(header[148:156])
    if summed != sum(header) - sum(header[148:156]) + 8 * 0x20:
        raise NotABundleError(BundleFlaw.DAMAGED)
    name = header[:100].partition(b"\0")[0].removeprefix(b"./").decode("latin-1")
    prefix = header[345:500].partition(b"\0")[0]
    if header[257:262] != _MAGIC or header[156:157] not in _FILE_TYPES or prefix or name not in MAX_SIZES:
        raise NotABundleError(BundleFlaw.OTHER_CONTENT)
    return name, _read_octal(header[124:136])


def _read_octal(field: bytes) -> int:
    digits = field.rstrip(b"\0 ").lstrip(b" ")
    if not digits or set(digits) - set(b"01234567"):
        raise NotABundleError(BundleFlaw.DAMAGED)
    return int(digits, 8)


# -- the answer of the process without privileges ------------------------------------------------------------------


def work(_argv: Sequence[str], stdin: bytes) -> bytes:
    """Find the parts; the answer is JSON: places by name, or the flaw."""
    try:
        return json.dumps({"parts": {name: list(place) for name, place in find_parts(stdin).items()}}).encode()
    except NotABundleError as error:
        return json.dumps({"flaw": str(error.flaw)}).encode()
