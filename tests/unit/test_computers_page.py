# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The page about whole computers is what the runs showed, with leaks if there were any."""

from __future__ import annotations

from tests.computers_page import DATA, PAGE, join_runs, read_runs, render

RUN = {"scenario": "sleep (S3)", "system": "debian-12", "frames": 7, "leaks": 1, "kinds": {"arp": 6}}


def test_the_page_is_what_the_runs_showed() -> None:
    runs = read_runs(DATA.read_text(encoding="utf-8").splitlines())
    assert PAGE.read_text(encoding="utf-8") == render(runs)
    assert runs


def test_a_leak_is_shown_and_the_last_run_of_a_scenario_counts() -> None:
    runs = join_runs([{**RUN, "leaks": 0}, {**RUN, "system": "debian-13"}, RUN])
    assert [run["system"] for run in runs] == ["debian-12", "debian-13"]
    assert "| sleep (S3) | 7 | 1 |  |  |  |  | 6 arp |" in render(runs)
