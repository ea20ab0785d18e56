# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine, the exit code and the text hold, whatever a check does."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.diagnose.scene import SceneSystem

from psiphon_vpn.diagnose.engine import run_checks, run_once
from psiphon_vpn.diagnose.facts import Facts
from psiphon_vpn.diagnose.model import Check, Group, Outcome, Result, Verdict, check, fail, find_exit_code, ok, warn
from psiphon_vpn.diagnose.no_answer import Skip, Unknowable
from psiphon_vpn.diagnose.render import render_json, render_text, to_json
from psiphon_vpn.errors import DaemonDownError, UserError
from psiphon_vpn.system.layout import Layout

pytestmark = pytest.mark.requirement("R15")


def make_facts(tmp_path: Path) -> Facts:
    return Facts(SceneSystem(), Layout(root=tmp_path))


def raises(error: Exception) -> Check:
    def run(_facts: Facts) -> Outcome:
        raise error

    return check("disk.x", "It works", "Repair it.")(run)


@pytest.mark.parametrize(
    ("error", "verdict", "reason"),
    [
        (ZeroDivisionError(), Verdict.UNKNOWN, "fault in check (ZeroDivisionError)"),
        (RecursionError(), Verdict.UNKNOWN, "fault in check (RecursionError)"),
        (Unknowable("nobody knows"), Verdict.UNKNOWN, "nobody knows"),
        (Skip("not here"), Verdict.SKIPPED, "not here"),
        (DaemonDownError("it sleeps"), Verdict.UNKNOWN, "it sleeps"),
    ],
)
def test_a_check_that_raises_is_unknown_and_counts_as_wrong(
    error: Exception, verdict: Verdict, reason: str, tmp_path: Path
) -> None:
    (result,) = run_once([raises(error)], make_facts(tmp_path))
    assert (result.verdict, result.reason) == (verdict, reason)
    assert find_exit_code((result,)) == (0 if verdict is Verdict.SKIPPED else 1)


def test_a_check_that_hangs_does_not_keep_the_others_nor_the_program(tmp_path: Path) -> None:
    forever = threading.Event()

    @check("disk.hangs", "It answers", "Wait.")
    def hangs(_facts: Facts) -> Outcome:
        forever.wait()
        return ok("")

    @check("disk.well", "It is well", "Nothing.")
    def well(_facts: Facts) -> Outcome:
        return ok("")

    # It hangs until the others have been reported.
    first, second = run_once([hangs, well], make_facts(tmp_path), seconds=0.5)
    forever.set()
    assert (first.verdict, second.verdict) == (Verdict.UNKNOWN, Verdict.OK)
    assert "0.5 seconds" in first.reason


def test_a_fact_is_read_once_for_all_checks_also_when_it_cannot_be_read(tmp_path: Path) -> None:
    facts, calls = make_facts(tmp_path), []

    def read() -> int:
        calls.append(1)
        raise Unknowable("no")

    for _ in range(3):
        with pytest.raises(Unknowable, match="no"):
            facts.once("x", read)
    assert len(calls) == 1


def make_flaky(outcomes: list[Outcome], *, group: str = "lock") -> Check:
    pending = list(outcomes)

    @check(f"{group}.flaky", "It is steady", "Wait.")
    def flaky(_facts: Facts) -> Outcome:
        return pending.pop(0) if len(pending) > 1 else pending[0]

    return flaky


def test_what_was_changing_while_it_was_looked_at_is_looked_at_again(tmp_path: Path) -> None:
    (result,) = run_checks([make_flaky([fail("half"), ok("whole")])], lambda: make_facts(tmp_path), pause=0)
    assert result.verdict is Verdict.OK


def test_what_stays_wrong_stays_wrong(tmp_path: Path) -> None:
    (result,) = run_checks([make_flaky([fail("one"), fail("two")])], lambda: make_facts(tmp_path), pause=0)
    assert (result.verdict, result.reason) == (Verdict.FAILED, "two")


def test_what_was_seen_open_stays_open_whatever_a_second_look_says(tmp_path: Path) -> None:
    flaky = make_flaky([fail("open", is_open=True), ok("closed")])
    (result,) = run_checks([flaky], lambda: make_facts(tmp_path), pause=0)
    assert result.open
    assert find_exit_code((result,)) == 2


def test_files_do_not_change_by_themselves_and_are_looked_at_once(tmp_path: Path) -> None:
    flaky = make_flaky([fail("wrong"), ok("right")], group="files")
    (result,) = run_checks([flaky], lambda: make_facts(tmp_path), pause=0)
    assert result.verdict is Verdict.FAILED


def results() -> st.SearchStrategy[tuple[Result, ...]]:
    def make(verdict: Verdict, is_open: bool, decides: bool) -> Result:
        base = Check(id="lock.x", group=Group.LOCK, title="t", next_step="s", run=lambda _: ok(""), decides=decides)
        return Result(check=base, verdict=verdict, reason="r", next_step=None, open=is_open, seconds=0)

    return st.lists(st.builds(make, st.sampled_from(Verdict), st.booleans(), st.booleans())).map(tuple)


@given(results())
def test_the_exit_code_never_calls_locked_what_is_open_or_could_not_be_read(found: tuple[Result, ...]) -> None:
    code = find_exit_code(found)
    blind = any(one.check.decides and one.verdict in {Verdict.UNKNOWN, Verdict.SKIPPED} for one in found)
    wrong = any(one.verdict in {Verdict.FAILED, Verdict.UNKNOWN} for one in found)
    if any(one.open for one in found) or blind:
        assert code == 2
    else:
        assert code == (1 if wrong else 0)


@pytest.fixture
def reported(tmp_path: Path) -> tuple[Result, ...]:
    outcomes = {
        "lock.a": ok("fine"),
        "lock.b": fail("a reason " + "that is long " * 20, "Do this.", is_open=True),
        "lock.c": warn("worth it"),
        "dns.d": fail("evil \x1b[2J\nnewline"),
    }
    checks = [check(name, f"Title of {name}", "The usual step.")(lambda _f, o=o: o) for name, o in outcomes.items()]  # type: ignore[misc]
    return run_once([*checks, raises(Skip("not here"))], make_facts(tmp_path))


def test_each_failure_is_reported_with_reason_and_next_step_within_the_width(reported: tuple[Result, ...]) -> None:
    import click

    text = click.unstyle(render_text(reported, width=80))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert "  ok  Title of lock.a: fine" in lines
    assert "  x   Title of lock.b" in lines
    assert "      do: Do this." in lines
    assert "      do: The usual step." in lines
    assert "  !   Title of lock.c" in lines
    assert "  -   It works: not here" in lines
    assert "\x1b" not in text
    assert lines[-1].startswith("OPEN")


def test_quiet_leaves_out_what_is_well(reported: tuple[Result, ...]) -> None:
    text = render_text(reported, quiet=True)
    assert "lock.a" not in text
    assert "not here" not in text
    assert "lock.b" in text


def test_the_json_is_one_object_with_every_check(reported: tuple[Result, ...]) -> None:
    document = json.loads(render_json(to_json(reported)))
    assert document["exit_code"] == 2
    assert document["open"] is True
    assert [one["id"] for one in document["checks"]] == ["lock.a", "lock.b", "lock.c", "dns.d", "disk.x"]
    assert document["counts"]["failed"] == 2
    assert document["checks"][1]["next_step"] == "Do this."
    assert document["checks"][0]["next_step"] is None


def test_on_a_machine_that_nobody_set_up_only_the_set_up_is_advised(tmp_path: Path) -> None:
    @check("lock.x", "It is locked", "Lock it.")
    def broken(_facts: Facts) -> Outcome:
        return fail("it is open")

    def look() -> Facts:
        facts = make_facts(tmp_path)
        facts.system.down = down  # type: ignore[attr-defined]
        return facts

    down: UserError | None = DaemonDownError("it is not running")
    (result,) = run_checks([broken], look, pause=0)
    assert result.next_step == "Install the service: sudo ./Psiphon-Linux-VPN-Service-Setup.sh install"
    # In the laboratory the service answers without an installation.
    down = None
    (result,) = run_checks([broken], look, pause=0)
    assert result.next_step == "Lock it."
    Layout(root=tmp_path).install_journal.parent.mkdir(parents=True)
    Layout(root=tmp_path).install_journal.touch()
    down = DaemonDownError("it is not running")
    (result,) = run_checks([broken], look, pause=0)
    assert result.next_step == "Lock it."
