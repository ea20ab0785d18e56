"""The log is bounded, whatever happens."""

from __future__ import annotations

import logging

from psiphon_vpn.service.logging_limit import BURST, LINES_PER_SECOND, LogLimit


def write(limit: LogLimit, lines: int) -> list[str]:
    found = []
    for number in range(lines):
        record = logging.LogRecord("name", logging.INFO, "file", 1, f"line {number}", None, None)
        if limit.filter(record):
            found.append(record.getMessage())
    return found


def test_a_burst_passes_and_a_flood_is_cut_to_its_rate() -> None:
    now = [0.0]
    limit = LogLimit(lambda: now[0])
    assert len(write(limit, BURST)) == BURST
    passed = 0
    for _ in range(300):
        now[0] += 1
        passed += len(write(limit, 20))
    assert passed == 300 * LINES_PER_SECOND


def test_what_was_left_out_is_counted_and_told() -> None:
    now = [0.0]
    limit = LogLimit(lambda: now[0])
    write(limit, BURST + 7)
    now[0] += 1
    assert write(limit, 1) == ["(7 lines left out) line 0"]
