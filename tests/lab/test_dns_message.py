# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The laboratory's DNS messages."""

from __future__ import annotations

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from psiphon_lab import dns_message as dns
from psiphon_lab.host_services import answer_query


@given(st.binary(max_size=100))
def test_no_bytes_make_the_readers_fail(data: bytes) -> None:
    dns.read_question(data)
    with contextlib.suppress(ValueError):
        dns.read_answers(data)


def test_a_question_is_answered_with_what_was_asked_for() -> None:
    for kind, value in ((dns.A, "203.0.113.80"), (dns.AAAA, "2001:db8::1"), (dns.TXT, "in-tunnel")):
        question = dns.read_question(dns.encode_query(77, "Echo.Lab.Example", kind))
        assert question is not None
        assert question.name == "echo.lab.example"
        assert dns.read_answers(dns.encode_answer(question, [value])) == (77, 0, [value])


def test_each_resolver_shows_its_mark_and_whoami_the_caller() -> None:
    for name, expected in (
        ("resolver.lab.example", "lan"),
        ("x.resolver.lab.example", "lan"),
        ("whoami.lab.example", "192.0.2.9"),
    ):
        answered = answer_query(dns.encode_query(1, name, dns.TXT), "192.0.2.9", "lan")
        assert answered is not None
        assert dns.read_answers(answered[0])[2] == [expected]


def test_a_name_outside_the_zone_does_not_exist() -> None:
    answered = answer_query(dns.encode_query(1, "example.com", dns.A), "192.0.2.9", "lan")
    assert answered is not None
    assert dns.read_answers(answered[0]) == (1, dns.NAME_ERROR, [])


def test_a_response_is_not_taken_for_a_query() -> None:
    question = dns.read_question(dns.encode_query(1, "a.lab.example", dns.A))
    assert question is not None
    assert answer_query(dns.encode_answer(question, []), "192.0.2.9", "lan") is None
