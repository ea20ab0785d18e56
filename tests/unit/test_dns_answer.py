# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Answers of a resolver at the far end of a tunnel: addresses or one error, whatever the bytes."""

from __future__ import annotations

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psiphon_lab.dns_message import encode_answer, read_question
from psiphon_vpn.servers.dns_answer import AAAA, A, DnsError, build_address_question, read_addresses

HOST = "s3.lists.example"
NUMBER = 0x1234


def answer(values: list[str], *, kind: int = A, rcode: int = 0) -> bytes:
    """The answer of the laboratory's resolver."""
    question = read_question(build_address_question(HOST, kind, NUMBER))
    assert question is not None
    return encode_answer(question, values, rcode=rcode)


@pytest.mark.parametrize(("kind", "texts"), [(A, ["11.0.0.80", "192.168.1.1"]), (AAAA, ["2600::80", "fe80::1"])])
def test_the_addresses_of_an_answer_are_read(kind: int, texts: list[str]) -> None:
    found = read_addresses(answer(texts, kind=kind), HOST, kind, NUMBER)
    assert [str(address) for address in found] == texts


def test_an_answer_by_another_name_of_the_host_is_read() -> None:
    """A CNAME first (RFC 1034, 3.6.2), and names that are pointers."""
    message = bytearray(answer(["11.0.0.80"]))
    question = build_address_question(HOST, A, NUMBER)
    alias = b"\xc0\x0c" + struct.pack(">HHIH", 5, 1, 60, 4) + b"\x01x\xc0\x0c"
    message[6:8] = struct.pack(">H", 2)
    message[len(question) : len(question)] = alias
    assert read_addresses(bytes(message), HOST, A, NUMBER) == (ipaddress.IPv4Address("11.0.0.80"),)


def test_no_such_host_has_no_address() -> None:
    assert read_addresses(answer([], rcode=3), HOST, A, NUMBER) == ()


def test_an_answer_to_another_question_is_none() -> None:
    right = answer(["11.0.0.80"])
    with pytest.raises(DnsError):
        read_addresses(right, HOST, A, NUMBER + 1)
    with pytest.raises(DnsError):
        read_addresses(right, "other.lists.example", A, NUMBER)
    with pytest.raises(DnsError):
        read_addresses(right, HOST, AAAA, NUMBER)
    with pytest.raises(DnsError):
        read_addresses(build_address_question(HOST, A, NUMBER), HOST, A, NUMBER)


@pytest.mark.parametrize("name", ["", ".", "a..b", "x" * 64, ".".join(["x" * 60] * 5), "müller.example"])
def test_what_is_no_name_is_never_asked_for(name: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        build_address_question(name, A, NUMBER)


@pytest.mark.requirement("R24")
@given(st.binary(max_size=200))
def test_whatever_bytes_come_there_are_addresses_or_one_error(data: bytes) -> None:
    for message in (data, answer(["11.0.0.80"])[:20] + data, build_address_question(HOST, A, NUMBER) + data):
        answered = message[:2] + b"\x80" + message[3:]
        for one in (message, answered, answered[:6] + b"\xff\xff" + answered[8:]):
            try:
                found = read_addresses(one, HOST, A, NUMBER)
            except DnsError:
                continue
            assert len(found) <= 32


@pytest.mark.requirement("R24")
@given(st.integers(0, 200))
def test_an_answer_that_is_cut_off_is_none(size: int) -> None:
    whole = answer(["11.0.0.80", "11.0.0.81"])
    if size >= len(whole):
        return
    with pytest.raises(DnsError):
        read_addresses(whole[:size], HOST, A, NUMBER)
