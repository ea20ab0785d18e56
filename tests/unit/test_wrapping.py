# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Sentences at the width of a terminal."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psiphon_vpn.local_time import show_duration, show_moment, show_time
from psiphon_vpn.wrapping import fit, wrap

words = st.text(st.characters(codec="ascii", min_codepoint=33), min_size=1, max_size=90)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@given(st.lists(words, min_size=1), st.integers(10, 120))
def test_every_word_stays_whole_and_no_line_is_longer_than_it_must_be(text: list[str], width: int) -> None:
    lines = wrap(" ".join(text), width, first="* ", rest="  ")
    assert " ".join(line[2:] for line in lines).split() == text
    assert all(len(line) <= width or len(line.split()) <= 2 for line in lines)


def test_only_a_terminal_gets_more_than_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    text = "To connect again: sudo psiphon-vpn start " * 3
    assert fit(text, io.StringIO()) == text
    lines = fit(text, Terminal()).splitlines()
    assert len(lines) > 1
    assert all(len(line) <= 50 for line in lines)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59, "59 s"), (61, "1 min 1 s"), (3600, "1 h 0 min"), (90_000, "1 d 1 h")]
)
def test_a_duration_is_reported_in_its_two_largest_units(seconds: int, text: str) -> None:
    assert show_duration(seconds) == text


@pytest.mark.parametrize("text", ["", "yesterday", "9999-12-31T23:59:59-23:59", "2026-13-01T00:00:00+00:00"])
def test_a_time_that_cannot_be_read_is_shown_as_it_is(text: str) -> None:
    assert show_moment(text) == show_time(text) == text


def test_the_lines_of_a_point_are_indented(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    first, *rest = fit("- " + "nothing leaves this computer " * 4, Terminal()).splitlines()
    assert first.startswith("- nothing")
    assert rest
    assert all(line.startswith("  ") and not line.startswith("   ") for line in rest)
