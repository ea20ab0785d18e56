# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading netlink messages: no bytes break it, and what is well-formed is understood."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from psiphon_vpn.linux.netlink import write_attribute
from psiphon_vpn.linux.nfnetlink import (
    Generation,
    GenerationChanged,
    check_answer,
    encode_kind,
    encode_message,
    parse_generations,
)

NEWGEN = (10 << 8) | 15


def attribute(kind: int, payload: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(payload), kind) + payload + b"\0" * (-len(payload) % 4)


def message(kind: int, body: bytes, sequence: int = 1) -> bytes:
    return struct.pack("=IHHII", 20 + len(body), kind, 0, sequence, 0) + b"\0\0\0\0" + body


def generation_message(number: int, pid: int, name: bytes) -> bytes:
    body = attribute(1, struct.pack(">I", number)) + attribute(2, struct.pack(">I", pid)) + attribute(3, name + b"\0")
    return message(NEWGEN, body)


names = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=15).map(str.encode)
numbers = st.integers(0, 2**32 - 1)


@given(st.binary(max_size=400))
@example(struct.pack("=IHHII", 16, NEWGEN, 0, 0, 0))
@example(struct.pack("=IHHII", 0, NEWGEN, 0, 0, 0))
@example(struct.pack("=IHHII", 0xFFFFFFFF, NEWGEN, 0, 0, 0))
@example(message(NEWGEN, struct.pack("=HH", 0, 1)))
@example(message(NEWGEN, attribute(1, b"\1")))
def test_no_bytes_break_the_reading_of_generations(data: bytes) -> None:
    for generation in parse_generations(data):
        assert 0 <= generation.number < 2**32


@given(numbers, numbers, names, st.binary(max_size=60))
def test_a_generation_is_read_whatever_follows_it(number: int, pid: int, name: bytes, rest: bytes) -> None:
    found = parse_generations(generation_message(number, pid, name) + rest)
    assert found[0] == Generation(number, pid, name.decode())


@given(st.lists(st.tuples(numbers, numbers, names), max_size=4))
def test_all_generations_of_one_reading_are_found_in_order(entries: list[tuple[int, int, bytes]]) -> None:
    data = b"".join(generation_message(*entry) for entry in entries)
    assert parse_generations(data) == tuple(Generation(number, pid, name.decode()) for number, pid, name in entries)


@given(numbers, numbers, names, st.integers(0, 70))
def test_a_generation_that_was_cut_off_is_not_half_understood(number: int, pid: int, name: bytes, length: int) -> None:
    whole = generation_message(number, pid, name)
    cut = whole[: min(length, len(whole) - 1)]
    assert parse_generations(cut) == ()


def test_other_messages_are_no_generations() -> None:
    body = attribute(1, struct.pack(">I", 7))
    assert parse_generations(message(2, body)) == ()
    assert [found.number for found in parse_generations(message((10 << 8) | 12, body) + message(2, body))] == [0]


def test_a_commit_tells_which_tables_it_touched_also_when_it_is_reported_in_several_messages() -> None:
    rule = message((10 << 8) | 6, attribute(1, b"psiphon_filter\0") + attribute(2, b"output\0"))
    other = message((10 << 8) | 0, attribute(1, b"docker\0"))
    generation = message((10 << 8) | 15, attribute(1, struct.pack(">I", 9)) + attribute(2, struct.pack(">I", 77)))
    (together,) = parse_generations(rule + other + generation)
    assert (together.number, together.pid, together.tables) == (9, 77, frozenset({"psiphon_filter", "docker"}))
    (first,) = parse_generations(rule)
    assert (first.number, first.tables) == (0, frozenset({"psiphon_filter"}))
    first_of_two, second = parse_generations(rule + generation + other)
    assert (first_of_two.tables, second.tables) == (frozenset({"psiphon_filter"}), frozenset({"docker"}))


def test_a_transaction_refused_for_its_generation_is_distinguished_from_other_refusals() -> None:
    def error(number: int) -> bytes:
        return struct.pack("=IHHII", 36, 2, 0, 1, 0) + struct.pack("=i", -number) + bytes(16)

    check_answer(error(0))
    with pytest.raises(GenerationChanged):
        check_answer(error(errno.ERESTART))
    with pytest.raises(OSError, match="Operation not permitted"):
        check_answer(error(errno.EPERM))


def test_a_message_is_as_long_as_it_says_and_aligned() -> None:
    body = write_attribute(1, b"abcde")
    assert len(body) % 4 == 0
    made = encode_message(encode_kind(12), 0, 9, body)
    assert struct.unpack_from("=I", made)[0] == len(made) == 16 + 4 + len(body)
