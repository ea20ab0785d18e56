# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The part of DNS (RFC 1035) that the laboratory needs: one question, one answer. Pure, standard library only."""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass

A, NS, TXT, AAAA = 1, 2, 16, 28
TYPE_NAMES = {A: "A", NS: "NS", TXT: "TXT", AAAA: "AAAA"}
NO_ERROR, NAME_ERROR, REFUSED = 0, 3, 5
TTL = 1


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question. name: lower case, no final dot. kind: the record type's number."""

    identifier: int
    name: str
    kind: int
    wire: bytes


def encode_name(name: str) -> bytes:
    """A name as labels. Raises ValueError if a label is empty or too long."""
    encoded = b""
    for label in name.rstrip(".").split("."):
        raw = label.encode("ascii")
        if not 0 < len(raw) < 64:
            raise ValueError(f"bad label in {name!r}")
        encoded += bytes([len(raw)]) + raw
    return encoded + b"\0"


def encode_query(identifier: int, name: str, kind: int) -> bytes:
    """A recursive query for one name."""
    return struct.pack("!HHHHHH", identifier, 0x0100, 1, 0, 0, 0) + encode_name(name) + struct.pack("!HH", kind, 1)


def _read_name(message: bytes, offset: int) -> tuple[str, int]:
    labels: list[str] = []
    after = -1
    for _ in range(128):
        length = message[offset]
        if length >= 0xC0:
            after = offset + 2 if after < 0 else after
            offset = struct.unpack_from("!H", message, offset)[0] & 0x3FFF
            continue
        offset += 1
        if length == 0:
            return ".".join(labels).lower(), offset if after < 0 else after
        labels.append(message[offset : offset + length].decode("ascii", "replace"))
        offset += length
    raise ValueError("name does not end")


def read_question(message: bytes) -> Question | None:
    """The first question of a query, or None if the message is not a well-formed query."""
    try:
        identifier, flags, count, *_ = struct.unpack_from("!HHHHHH", message)
        if flags & 0x8000 or count < 1:
            return None
        name, end = _read_name(message, 12)
        kind, _ = struct.unpack_from("!HH", message, end)
    except (struct.error, IndexError, ValueError):
        return None
    return Question(identifier=identifier, name=name, kind=kind, wire=message[12 : end + 4])


def _encode_value(kind: int, value: str) -> bytes:
    if kind == TXT:
        raw = value.encode("utf-8")[:255]
        return bytes([len(raw)]) + raw
    if kind == NS:
        return encode_name(value)
    return ipaddress.ip_address(value).packed


def encode_answer(question: Question, values: list[str], *, rcode: int = NO_ERROR) -> bytes:
    """A response with `values` as records of the question's type."""
    message = struct.pack("!HHHHHH", question.identifier, 0x8580 | rcode, 1, len(values), 0, 0) + question.wire
    for value in values:
        data = _encode_value(question.kind, value)
        message += struct.pack("!HHHIH", 0xC00C, question.kind, 1, TTL, len(data)) + data
    return message


def read_answers(message: bytes) -> tuple[int, int, list[str]]:
    """(identifier, rcode, values) of a response. Raises ValueError if it is malformed."""
    try:
        identifier, flags, questions, answers, *_ = struct.unpack_from("!HHHHHH", message)
        offset = 12
        for _ in range(questions):
            offset = _read_name(message, offset)[1] + 4
        values: list[str] = []
        for _ in range(answers):
            offset = _read_name(message, offset)[1]
            kind, _, _, length = struct.unpack_from("!HHIH", message, offset)
            data = message[offset + 10 : offset + 10 + length]
            offset += 10 + length
            if kind in (A, AAAA):
                values.append(str(ipaddress.ip_address(data)))
            elif kind == TXT:
                values.append(data[1 : 1 + data[0]].decode("utf-8", "replace"))
    except (struct.error, IndexError, ValueError) as error:
        raise ValueError("malformed DNS response") from error
    return identifier, flags & 15, values
