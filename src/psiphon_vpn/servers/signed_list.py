# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Opens a signed list: pure, and run only by `unprivileged.py`, since whoever sends it chooses every byte.

The format: a zlib stream (RFC 1950) of one JSON object with exactly "data", "signingPublicKeyDigest" and "signature",
three strings. What is opened here is not trusted yet: the signature is verified afterwards, by another process.

The answer begins with one byte. "+": 44 bytes of digest, 2 bytes of length (network order), the signature, the data.
"-": the name of a flaw. No parser is needed to read it.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import struct
import zlib
from collections.abc import Sequence
from typing import Final, NoReturn

from psiphon_vpn.servers.errors import ListFlaw

MAX_INFLATED: Final = 32 << 20
"""Bytes. A list of 2,000 servers has about 10 MiB."""
MAX_SIGNED: Final = 16 << 20
"""Bytes of the file."""
DIGEST_CHARACTERS: Final = 44
_MAX_SIGNATURE: Final = 1024
_HEAD: Final = struct.Struct(f"!{DIGEST_CHARACTERS}sH")
_FLAWS: Final = frozenset(
    {
        ListFlaw.TRUNCATED,
        ListFlaw.DAMAGED,
        ListFlaw.NOT_A_LIST,
        ListFlaw.TOO_LARGE,
        ListFlaw.EMPTY,
        ListFlaw.UNSIGNED,
    }
)
"""What `work` can say: nothing that a user may decide to accept."""
_KEYS: Final = frozenset({"data", "signingPublicKeyDigest", "signature"})
_BASE64_DIGEST: Final = re.compile(r"[A-Za-z0-9+/]{43}=")
_HEX_LINE: Final = re.compile(rb"(?:[0-9A-Fa-f]{2}){32}")
_STEP: Final = 1 << 16


class NotOpenedError(Exception):
    """The content is no signed list."""

    def __init__(self, flaw: ListFlaw) -> None:
        super().__init__(flaw)
        self.flaw = flaw


def work(_argv: Sequence[str], content: bytes) -> bytes:
    """Open a list for `run_unprivileged`."""
    try:
        digest, signature, data = open_list(content)
    except NotOpenedError as refused:
        return b"-" + refused.flaw.encode()
    return b"+" + _HEAD.pack(digest.encode(), len(signature)) + signature + data


def read_answer(answer: bytes) -> tuple[str, bytes, bytes]:
    """Take the answer of `work` apart: digest, signature and data.

    Raises:
        NotOpenedError: the flaw in it; DAMAGED for an answer that `work` does not give.
    """
    if answer[:1] == b"-":
        named = answer[1:].decode("ascii", "replace")
        raise NotOpenedError(next((flaw for flaw in _FLAWS if flaw.value == named), ListFlaw.DAMAGED))
    if answer[:1] != b"+" or len(answer) <= _HEAD.size:
        raise NotOpenedError(ListFlaw.DAMAGED)
    digest, length = _HEAD.unpack_from(answer, 1)
    start = 1 + _HEAD.size
    if length > _MAX_SIGNATURE or start + length > len(answer):
        raise NotOpenedError(ListFlaw.DAMAGED)
    return digest.decode("ascii", "replace"), answer[start : start + length], answer[start + length :]


def open_list(content: bytes) -> tuple[str, bytes, bytes]:
    """Open a signed list.

    Returns:
        Digest of the key that it names, signature, and data. Nothing of it is verified.

    Raises:
        NotOpenedError: what it is instead.
    """
    document = _parse(_inflate(content))
    digest, signature, data = (document[name] for name in ("signingPublicKeyDigest", "signature", "data"))
    if not _BASE64_DIGEST.fullmatch(digest):
        _refuse(ListFlaw.DAMAGED)
    try:
        decoded = base64.b64decode(signature, validate=True)
        # Hexadecimal lines: anything else could not be an entry, and the signed bytes would be doubtful.
        encoded = data.encode("ascii")
    except (binascii.Error, ValueError):
        _refuse(ListFlaw.DAMAGED)
    if not 0 < len(decoded) <= _MAX_SIGNATURE:
        _refuse(ListFlaw.DAMAGED)
    return digest, decoded, encoded


def _inflate(content: bytes) -> bytes:
    if len(content) > MAX_SIGNED:
        _refuse(ListFlaw.TOO_LARGE)
    engine = zlib.decompressobj()
    parts: list[bytes] = []
    left = MAX_INFLATED + 1
    pending = content
    while pending and not engine.eof:
        try:
            part = engine.decompress(pending, min(left, _STEP))
        except zlib.error:
            _refuse(_recognise(content))
        parts.append(part)
        left -= len(part)
        if left <= 0:
            _refuse(ListFlaw.TOO_LARGE)
        pending = engine.unconsumed_tail
    if not engine.eof:
        _refuse(ListFlaw.TRUNCATED if content else ListFlaw.EMPTY)
    if engine.unused_data:
        _refuse(ListFlaw.DAMAGED)
    return b"".join(parts)


def _recognise(content: bytes) -> ListFlaw:
    """What it is if it is no whole stream."""
    # RFC 1950, 2.2: method 8, and the first two bytes are a multiple of 31.
    if len(content) >= 2 and content[0] & 15 == 8 and (content[0] << 8 | content[1]) % 31 == 0:
        return ListFlaw.DAMAGED
    return ListFlaw.UNSIGNED if _HEX_LINE.match(content.lstrip()) else ListFlaw.NOT_A_LIST


def _parse(content: bytes) -> dict[str, str]:
    try:
        found = json.loads(content.decode("ascii"), object_pairs_hook=_take_once)
    except (ValueError, RecursionError):
        _refuse(ListFlaw.DAMAGED)
    if not isinstance(found, dict) or set(found) != _KEYS or not all(isinstance(text, str) for text in found.values()):
        _refuse(ListFlaw.DAMAGED)
    return found


def _take_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is there twice")
    return found


def _refuse(flaw: ListFlaw) -> NoReturn:
    raise NotOpenedError(flaw) from None
