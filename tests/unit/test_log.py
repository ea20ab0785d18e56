# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""`log`: the journal in plain words."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psiphon_vpn import run as running
from psiphon_vpn.cli.main import run_cli
from psiphon_vpn.diagnose.log_lines import LogWriter, read_entry
from psiphon_vpn.diagnose.log_query import list_matches
from psiphon_vpn.diagnose.report import COMMANDS
from psiphon_vpn.run import CLEAN_ENV, follow_lines
from psiphon_vpn.service.reasons import Reason, explain
from psiphon_vpn.system.layout import SERVERS_UNIT, SLEEP_UNIT, UNITS

AT = 1_767_323_045_000_000  # 2026-01-02T03:04:05Z


def entry(message: object, **fields: object) -> str:
    return json.dumps({"MESSAGE": message, "__REALTIME_TIMESTAMP": str(AT), "__CURSOR": "s=1", **fields})


def move(reason: Reason, detail: str = "", state: str = "CONNECTING") -> str:
    """A move as the daemon logs it (service/runner.py)."""
    return entry(f"INFO psiphon_vpn.service.runner: LOCKED -> {state}: {reason} {detail}: {explain(reason).sentence}")


@pytest.fixture(autouse=True)
def in_berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "CET-1CEST")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize("reason", Reason)
@pytest.mark.parametrize("detail", ["", "3 servers known, 2 tried in 15 s"])
def test_a_move_is_reported_with_its_why_and_what_to_do(reason: Reason, detail: str) -> None:
    line = read_entry(move(reason, detail))
    assert line is not None
    reported = explain(reason, detail)
    assert line.text == f"connecting: {reported.sentence}"
    assert line.step == reported.next_step


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ("INFO psiphon_vpn.service.runner: next: connecting again, at 2026-01-02T03:05:06+00:00",
         "next: connecting again, at 04:05:06"),
        ("INFO psiphon_vpn.service.control: uid 1000 requests: stop", "user number 1000 asked for: stop"),
        ("Started psiphon-vpn.service - Psiphon VPN.", "Started psiphon-vpn.service - Psiphon VPN."),
        (list(b"caf\xc3\xa9 \xff\x1b[2J"), "caf\u00e9 \ufffd [2J"),
        ("INFO x: LOCKED -> ELSEWHERE: new_reason d: s", "LOCKED -> ELSEWHERE: new_reason d: s"),
    ],
)  # fmt: skip
def test_other_lines_are_reported_in_plain_words(message: object, text: str) -> None:
    line = read_entry(entry(message))
    assert line is not None
    assert line.text == text


@pytest.mark.parametrize(
    "line",
    [
        "",
        "x",
        "[]",
        "null",
        "5",
        "[" * 5000,
        "{}",
        entry(None),
        entry("DEBUG a.b: x"),
        entry("ERROR a.b: configuration: line 1: not usable"),
    ],
)
def test_what_is_nothing_for_people_is_left_out(line: str) -> None:
    assert read_entry(line) is None


@given(st.text() | st.lists(st.integers(-5, 300)) | st.none() | st.dictionaries(st.text(), st.text()), st.text())
def test_any_entry_is_survived_and_cannot_steer_the_terminal(message: object, at: str) -> None:
    line = read_entry(entry(message, __REALTIME_TIMESTAMP=at))
    if line is not None:
        for shown in LogWriter(80).write(line):
            assert shown.isprintable()


def test_the_date_comes_once_and_each_next_step_once_in_a_row() -> None:
    writer = LogWriter(60)
    shown = [
        text
        for line in (move(Reason.REGION), move(Reason.REGION), move(Reason.VERIFIED, state="OPEN"))
        if (found := read_entry(line)) is not None
        for text in writer.write(found)
    ]
    assert shown[0] == "2026-01-02 CET"
    assert sum("do: " in text for text in shown) == 1
    assert shown[1].startswith("04:04:05  connecting: no known Psiphon server")
    assert all(len(text) <= 60 for text in shown)


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for journalctl, which a test writes."""
    monkeypatch.setattr(running, "CLEAN_ENV", {**CLEAN_ENV, "PATH": f"{tmp_path}:{CLEAN_ENV['PATH']}"})
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path / "journalctl"


def script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_the_log_is_shown_and_followed_from_where_it_was_read(
    journal: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = move(Reason.CONNECTING), move(Reason.VERIFIED, state="OPEN")
    script(journal, f"case \"$*\" in *--after-cursor=s=1*) echo '{second}';; *) echo '{first}';; esac")
    assert run_cli(["log"]) == 0
    assert "connecting: looking for a Psiphon server" in capsys.readouterr().out
    assert run_cli(["log", "-f"]) == 0
    shown = capsys.readouterr().out
    assert shown.index("connecting: looking") < shown.index("connected: everything goes")


@pytest.mark.parametrize(
    ("answer", "user", "reported", "ends"),
    [
        ("echo 'Hint: You are currently not seeing messages from other users.' >&2", 1000, "only root", 77),
        ("echo 'No journal files were opened due to insufficient permissions.' >&2; exit 1", 1000, "only root", 77),
        ("echo 'No journal files were found.' >&2", 0, "the journal of systemd is empty", 1),
        ("true", 0, "nothing about the service yet", 0),
        ("echo boom >&2; exit 3", 0, "boom", 1),
    ],
)
def test_a_log_that_cannot_be_read_says_why(
    journal: Path, capsys: pytest.CaptureFixture[str], *, answer: str, user: int, reported: str, ends: int
) -> None:
    script(journal, answer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.geteuid", lambda: user)
        assert run_cli(["log"]) == ends
    shown = capsys.readouterr()
    assert reported in shown.out + shown.err


def test_the_log_has_all_units_but_not_each_uneventful_run_of_those_that_run_again_and_again(
    journal: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script(journal, f'printf "%s\\n" "$@" >{journal}.asked; echo \'{entry("said")}\'')
    assert run_cli(["log"]) == 0
    assert "said" in capsys.readouterr().out
    asked = Path(f"{journal}.asked").read_text().split()
    terms = [term.split() for term in " ".join(word for word in asked if not word.startswith("--")).split(" + ")]
    for unit in UNITS:
        assert [f"_SYSTEMD_UNIT={unit}"] in terms
        about = next(term for term in terms if term[:2] == ["_PID=1", f"UNIT={unit}"])
        # Warnings and errors of systemd, such as "Failed with result", but not "Starting" and "Finished".
        quiet = [f"PRIORITY={number}" for number in range(5)] if unit in {SERVERS_UNIT, SLEEP_UNIT} else []
        assert about[2:] == quiet


def test_a_report_has_the_same_entries_so_that_uneventful_runs_do_not_fill_it() -> None:
    (asked,) = (argv for argv in COMMANDS if argv[0] == "journalctl")
    assert list(asked[-len(list_matches()) :]) == list_matches()


def test_a_system_without_a_journal_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(running, "CLEAN_ENV", {"PATH": str(tmp_path)})
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run_cli(["log"]) == 1
    assert "no journal of systemd" in capsys.readouterr().err


def test_a_command_that_goes_on_ends_with_its_reader() -> None:
    with follow_lines(["sh", "-c", "echo $$; exec sleep 1000"]) as lines:
        number = int(next(lines))
    assert subprocess.run(["kill", "-0", str(number)], check=False, capture_output=True).returncode != 0
