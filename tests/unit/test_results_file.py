# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs of the leak test that are interrupted, continued and combined."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from psiphon_lab import revision
from psiphon_lab.leaktest.cell import Cell
from psiphon_lab.leaktest.model import Mode, Trace
from psiphon_lab.leaktest.results_file import ResultsFile, Subject, read_results
from psiphon_lab.leaktest.verdict import Judgement, Leak, Tried
from psiphon_lab.namespace import LabError
from psiphon_lab.revision import UNKNOWN, describe_commits, describe_mixture, read_commit

TESTED = Subject(machine="vm:debian-12", kernel="6.1.0-1-amd64", version="1.2.3")
SHOT = Tried(
    name="UDP ipv4", by="user", family=4, trace=Trace(), results={"unreachable": 2}, rounds=2, needs="egress_hook"
)
LEAK = Leak(time=1.5, wire="provider_a", text="UDP", hex="ff" * 14, family=4, attempt="UDP ipv4")
CELL = Cell(
    attack="A01",
    mode=Mode.OPEN,
    seconds=3.5,
    actions=("nft list ruleset",),
    tried=(SHOT,),
    judgement=Judgement(frames=7, kinds={"ARP": 6}, leaks=(LEAK,), seen={"UDP ipv4": 1}),
    complete=True,
    layers={"wire guard: output": 2},
    recording="A01-open.pcapng",
)
CONTROL = replace(CELL, mode=Mode.CONTROL)


def test_a_cell_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "results"
    first = ResultsFile(path, TESTED)
    first.add(CELL)
    first.note_missing(["egress_hook"])
    again = ResultsFile(path, TESTED)
    assert again.cells == (CELL,)
    assert again.tested.missing == ("egress_hook",)
    assert read_results(path).tested == again.tested


def test_what_was_played_is_not_played_again(tmp_path: Path) -> None:
    results = ResultsFile(tmp_path / "results", TESTED)
    results.add(CELL)
    results.add(CONTROL)
    assert results.done == {("A01", Mode.OPEN), ("A01", Mode.CONTROL)}


def test_a_control_that_has_not_seen_what_a_state_tries_is_played_again(tmp_path: Path) -> None:
    """The attempts of an attack may change between two runs; without this their cells stayed unproven for ever."""
    results = ResultsFile(tmp_path / "results", TESTED)
    results.add(CONTROL)
    results.add(replace(CELL, tried=(SHOT, replace(SHOT, name="TCP ipv4"))))
    assert results.done == {("A01", Mode.OPEN)}


@pytest.mark.parametrize(
    "changes",
    [
        {"error": "the machine stopped"},
        {"state_lost": "the service is LOCKED"},
        {"complete": False},
        {"tried": (replace(SHOT, error="no result"),)},
        {"mode": Mode.CONTROL, "judgement": Judgement(frames=0, kinds={}, leaks=(), seen={})},
    ],
    ids=str,
)
def test_what_proves_nothing_is_played_again_and_replaced(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = tmp_path / "results"
    poor = replace(CELL, **changes)
    ResultsFile(path, TESTED).add(poor)
    results = ResultsFile(path, TESTED)
    assert not results.done
    better = CONTROL if poor.mode is Mode.CONTROL else CELL
    results.add(better)
    assert ResultsFile(path, TESTED).cells == (better,)


def test_a_line_that_was_not_finished_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "results"
    ResultsFile(path, TESTED).add(CELL)
    whole = path.read_bytes()
    path.write_bytes(whole + whole.splitlines()[-1][:-20])
    assert ResultsFile(path, TESTED).cells == (CELL,)
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "other",
    [
        replace(TESTED, machine="vm:debian-11"),
        replace(TESTED, kernel="6.1.0-2-amd64"),
        replace(TESTED, version="1.2.4"),
    ],
    ids=str,
)
def test_results_of_something_else_are_refused(tmp_path: Path, other: Subject) -> None:
    path = tmp_path / "results"
    ResultsFile(path, TESTED).add(CELL)
    with pytest.raises(LabError, match="has results of"):
        ResultsFile(path, other)


def test_results_of_several_commits_are_added_up_and_named(tmp_path: Path) -> None:
    path = tmp_path / "results"
    first = ResultsFile(path, replace(TESTED, commit="aaaaaaaa"))
    first.add(CONTROL)
    first.add(CELL)
    second = ResultsFile(path, replace(TESTED, commit="bbbbbbbb+"))
    assert second.commits == ("aaaaaaaa",), "it has played nothing yet"
    second.add(CELL)
    lines = path.read_bytes()
    assert ResultsFile(path, TESTED).commits == read_results(path).commits == ("aaaaaaaa", "bbbbbbbb+")
    assert path.read_bytes() == lines, "who only reads writes nothing"
    second.add(CONTROL)
    assert read_results(path).commits == ("bbbbbbbb+",), "what was replaced does not count"
    third = ResultsFile(path, replace(TESTED, commit="cccccccc"))
    third.note_missing(["egress_hook"])
    third.add(CELL)
    assert read_results(path).commits == ("bbbbbbbb+", "cccccccc")


def test_a_file_from_before_commits_were_recorded_is_read(tmp_path: Path) -> None:
    path = tmp_path / "results"
    ResultsFile(path, TESTED).add(CELL)
    path.write_text(path.read_text().replace(f', "commit": "{UNKNOWN}"', ""))
    assert '"commit"' not in path.read_text()
    assert read_results(path).commits == (UNKNOWN,)
    ResultsFile(path, replace(TESTED, commit="aaaaaaaa")).add(CONTROL)
    assert read_results(path).commits == (UNKNOWN, "aaaaaaaa")


def test_a_page_says_which_commit_played_it_or_that_several_were_added_up() -> None:
    assert describe_commits(["aaaaaaaa"]) == "Commit aaaaaaaa."
    assert describe_mixture(["aaaaaaaa", "aaaaaaaa"]) == ""
    assert "2 states" in describe_mixture(["aaaaaaaa", "bbbbbbbb", "aaaaaaaa"])
    assert "unknown, aaaaaaaa" in describe_mixture([UNKNOWN, "aaaaaaaa"])


def test_the_commit_is_that_of_the_checkout_and_a_change_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*words: str) -> str:
        who = ("-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false")
        done = subprocess.run(["git", "-C", tmp_path, *who, *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def read() -> str:
        read_commit.cache_clear()
        return read_commit()

    file = tmp_path / "module.py"
    file.write_text("")
    monkeypatch.setattr(revision, "__file__", str(file))
    assert read() == UNKNOWN
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    assert read() == git("rev-parse", "--short=8", "HEAD")
    git("tag", "-am", "a version", "v1")
    file.write_text("changed")
    assert read() == git("rev-parse", "--short=8", "HEAD") + "+"
    monkeypatch.undo()
    read_commit.cache_clear()


@pytest.mark.parametrize("text", ["", "{}\n", "no JSON\n"])
def test_a_file_of_another_kind_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "results"
    path.write_text(text)
    with pytest.raises(LabError, match="results"):
        read_results(path)
