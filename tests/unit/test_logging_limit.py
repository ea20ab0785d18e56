# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The log is bounded, whatever happens."""

from __future__ import annotations

import logging

from psiphon_vpn.service.logging_limit import BURST, LINES_PER_SECOND, SAME_BURST, SAME_PER_SECOND, LogLimit


def write(limit: LogLimit, lines: int, first: int = 0) -> list[str]:
    found = []
    for number in range(first, first + lines):
        record = logging.LogRecord("name", logging.INFO, "file", 1, f"line {number}", None, None)
        if limit.filter(record):
            found.append(record.getMessage())
    return found


def test_a_burst_passes_and_a_flood_is_cut_to_its_rate() -> None:
    now = [0.0]
    limit = LogLimit(lambda: now[0])
    assert len(write(limit, BURST)) == BURST
    passed = 0
    for second in range(300):
        now[0] += 1
        passed += len(write(limit, 20, first=1000 + 20 * second))
    assert passed == 300 * LINES_PER_SECOND


def test_what_was_left_out_is_counted_and_reported() -> None:
    now = [0.0]
    limit = LogLimit(lambda: now[0])
    write(limit, BURST + 7)
    now[0] += 1
    assert write(limit, 1) == ["(7 lines left out) line 0"]


def test_a_line_that_comes_again_and_again_does_not_take_the_place_of_others() -> None:
    now = [0.0]
    limit = LogLimit(lambda: now[0])

    def write_same(times: int) -> int:
        return sum(
            limit.filter(logging.LogRecord("n", logging.INFO, "f", 1, "it is %s", ("22",), None)) for _ in range(times)
        )

    assert write_same(100) == SAME_BURST
    assert write(limit, 2) == [f"({100 - SAME_BURST} lines left out) line 0", "line 1"]
    now[0] += 30
    assert write_same(100) == 30 * SAME_PER_SECOND


def test_what_is_remembered_of_lines_is_bounded() -> None:
    limit = LogLimit(lambda: 0.0)
    write(limit, 10_000)
    assert limit.remembered < 100
