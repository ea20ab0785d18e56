# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The link between the laboratory and a process in a virtual machine."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from psiphon_lab.link import Link
from psiphon_lab.namespace import LabError

LONG = 60.0


def refuse() -> None:
    raise LabError("the machine has no card")


def stumble() -> None:
    raise KeyError("eth0")


@pytest.fixture
def ends() -> Iterator[tuple[Link, Link, socket.socket]]:
    """Two ends that can call each other, and the second one's socket."""
    one, other = socket.socketpair()
    first = Link(one.fileno(), one.fileno(), {"double": lambda number: 2 * number})
    second = Link(
        other.fileno(),
        other.fileno(),
        {
            "echo": lambda *given: given,
            "ask back": lambda number: second.ask("double", number, seconds=LONG),
            "refuse": refuse,
            "stumble": stumble,
        },
    )
    first.start()
    second.start()
    try:
        yield first, second, other
    finally:
        for end in (one, other):
            end.shutdown(socket.SHUT_RDWR) if end.fileno() >= 0 else None
        first.wait_for_end()
        second.wait_for_end()
        one.close()
        other.close()


def test_what_is_asked_is_answered_whatever_it_is(ends: tuple[Link, Link, socket.socket]) -> None:
    first = ends[0]
    assert first.ask("echo", 1, "two", {"three": b"\n\0"}, seconds=LONG) == (1, "two", {"three": b"\n\0"})
    assert first.ask("echo", b"x" * 300_000, seconds=LONG) == (b"x" * 300_000,)


def test_who_is_asked_may_ask_back_before_the_answer(ends: tuple[Link, Link, socket.socket]) -> None:
    assert ends[0].ask("ask back", 21, seconds=LONG) == 42


@pytest.mark.parametrize(
    ("name", "said"),
    [("refuse", "the machine has no card"), ("stumble", "KeyError: 'eth0'"), ("unknown", "KeyError: 'unknown'")],
)
def test_what_fails_on_the_other_side_fails_here(ends: tuple[Link, Link, socket.socket], name: str, said: str) -> None:
    with pytest.raises(LabError, match=said):
        ends[0].ask(name, seconds=LONG)


def test_nobody_waits_for_a_side_that_has_ended(ends: tuple[Link, Link, socket.socket]) -> None:
    ends[2].shutdown(socket.SHUT_RDWR)
    with pytest.raises(LabError, match="the other side ended"):
        ends[0].ask("echo", seconds=LONG)
