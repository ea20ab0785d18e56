# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A DNS question for a host's addresses, and the addresses in the answer (RFC 1035). Pure; the answer is hostile."""

from __future__ import annotations

import ipaddress
import struct
from typing import Final

from psiphon_vpn.policy.values import Address

A: Final = 1
AAAA: Final = 28
_IN: Final = 1
_HEADER: Final = struct.Struct(">HHHHHH")
_FIXED: Final = struct.Struct(">HHIH")
_RECURSION_DESIRED: Final = 0x0100
_RESPONSE: Final = 0x8000
_CODE: Final = 0x000F
_MOST_RECORDS: Final = 32
_POINTER: Final = 0xC0


class DnsError(ValueError):
    """This is no answer to the question. The only exception, whatever the bytes."""


def build_address_question(host: str, kind: int, identifier: int) -> bytes:
    """A question for the addresses of a host.

    Args:
        host: its name, in ASCII.
        kind: A or AAAA (RFC 3596).
        identifier: 16 bits.

    Raises:
        ValueError: no host can have this name.
    """
    return _HEADER.pack(identifier, _RECURSION_DESIRED, 1, 0, 0, 0) + _render_question(host, kind)


def _render_question(host: str, kind: int) -> bytes:
    labels = [label.encode("ascii") for label in host.lower().rstrip(".").split(".")]
    if not all(1 <= len(label) <= 63 for label in labels) or sum(map(len, labels)) + len(labels) > 254:
        raise ValueError("no name of a host")
    name = b"".join(bytes([len(label)]) + label for label in labels) + b"\x00"
    return name + struct.pack(">HH", kind, _IN)


def read_addresses(message: bytes, host: str, kind: int, identifier: int) -> tuple[Address, ...]:
    """The addresses that an answer has, in its order; none if it says that there is no such host.

    Args:
        message: what came.
        host: of the question.
        kind: of the question.
        identifier: of the question.

    Raises:
        DnsError: it is no answer to that question.
    """
    try:
        number, flags, questions, answers, _authorities, _more = _HEADER.unpack_from(message)
        asked = _render_question(host, kind)
        said = message[_HEADER.size : _HEADER.size + len(asked)]
        if (number, questions) != (identifier, 1) or not flags & _RESPONSE or said.lower() != asked:
            raise DnsError("to another question")
        if flags & _CODE:
            return ()
        offset = _HEADER.size + len(asked)
        found: list[Address] = []
        for _ in range(min(answers, _MOST_RECORDS)):
            offset = _skip_name(message, offset)
            record, kind_of_net, _seconds, size = _FIXED.unpack_from(message, offset)
            offset += _FIXED.size
            value = message[offset : offset + size]
            if len(value) != size:
                raise DnsError("it is cut off")
            offset += size
            if (record, kind_of_net, size) == (kind, _IN, 4 if kind == A else 16):
                found.append(ipaddress.IPv4Address(value) if kind == A else ipaddress.IPv6Address(value))
        return tuple(found)
    except (struct.error, IndexError) as error:
        raise DnsError("it is cut off") from error


def _skip_name(message: bytes, offset: int) -> int:
    """The offset after a name. Pointers are not followed: each step goes forward, so that this ends."""
    while (length := message[offset]) != 0:
        if length & _POINTER == _POINTER:
            return offset + 2
        if length & _POINTER:
            raise DnsError("a label of an unknown kind")
        offset += 1 + length
    return offset + 1
