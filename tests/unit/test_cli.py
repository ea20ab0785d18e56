"""The command line."""

import json
import os
import re
import subprocess
import sys
import time
import types
from collections.abc import Mapping
from pathlib import Path

import pytest
from tests.conftest import Figure

from psiphon_vpn import client
from psiphon_vpn.cli import develop, view
from psiphon_vpn.cli.main import run_cli
from psiphon_vpn.errors import DaemonDownError, UserError

STATUS: dict[str, object] = {
    "state": "OPEN",
    "reason": "The tunnel is checked and open.",
    "reason_code": "open",
    "next_step": None,
    "since": "2026-01-02T03:04:05+00:00",
    "next_try": None,
    "next_try_what": None,
    "locked": True,
    "intent": "connected",
    "region": "CA",
    "uplink": {"interface": "eth0", "ipv4": True, "ipv6": False},
    "layers": {"base": {"state": "ok", "detail": ""}, "lease": {"state": "ok", "detail": "8 s left"}},
    "missing_features": [],
    "core_pid": 5,
}


def fake_kernel(monkeypatch: pytest.MonkeyPatch, *, locked: bool | None) -> None:
    module = types.ModuleType("psiphon_vpn.linux.lockstate")
    lock = types.SimpleNamespace(
        locked=locked, sentence="The base table stands.", layers={"base": {"state": "ok", "detail": ""}}
    )
    module.__dict__["read_lock_state"] = lambda: lock
    monkeypatch.setitem(sys.modules, "psiphon_vpn.linux.lockstate", module)


def fake_daemon(monkeypatch: pytest.MonkeyPatch, status: Mapping[str, object]) -> None:
    monkeypatch.setattr(client, "request_status", lambda _runtime_dir: dict(status))


def test_status_of_an_open_tunnel_is_told_in_sentences(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_daemon(monkeypatch, STATUS)
    assert run_cli(["status"]) == 0
    shown = capsys.readouterr().out
    assert "PROTECTED and connected" in shown
    assert "you appear on the internet in CA" in shown
    assert "eth0 (IPv4)" in shown
    assert "2026-01-02 03:04:05 UTC" in shown
    assert "2 of 2 layers in place" in shown


def test_status_says_what_is_tried_next_and_when(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    change = {"state": "LOCKED", "next_try": "2026-01-02T03:05:06.789+00:00", "next_try_what": "connecting again"}
    fake_daemon(monkeypatch, STATUS | change)
    assert run_cli(["status"]) == 0
    assert re.search(r"^Next: +connecting again, at 03:05:06 UTC$", capsys.readouterr().out, re.MULTILINE)


def test_status_as_json_is_one_object(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fake_daemon(monkeypatch, STATUS)
    assert run_cli(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == STATUS


@pytest.mark.parametrize(
    ("change", "headline", "code"),
    [
        ({"state": "LOCKED"}, "PROTECTED and offline", 0),
        ({"state": "CONNECTING"}, "PROTECTED, connecting", 0),
        ({"state": "VERIFYING"}, "PROTECTED, almost connected", 0),
        ({"state": "FAILED"}, "needs your help", 0),
        ({"locked": False}, "NOT LOCKED", 1),
        ({"locked": None}, "NOT LOCKED", 1),
        ({"locked": "true"}, "NOT LOCKED", 1),
    ],
)
def test_the_headline_says_first_whether_the_machine_is_locked(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, object],
    headline: str,
    code: int,
) -> None:
    fake_daemon(monkeypatch, STATUS | change)
    assert run_cli(["status"]) == code
    assert headline in capsys.readouterr().out.splitlines()[0]


@pytest.mark.parametrize(
    ("locked", "told"),
    [
        (True, ("LOCKED, and the service is not running", "LOCKED")),
        (False, ("NOT LOCKED, and the service is not running", "UNLOCKED")),
        (None, ("it is unknown", "UNKNOWN")),
    ],
)
def test_without_a_daemon_the_kernel_answers(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    locked: bool | None,
    told: tuple[str, str],
) -> None:
    headline, state = told
    fake_kernel(monkeypatch, locked=locked)
    assert run_cli(["--runtime-dir", str(tmp_path), "status"]) == 3
    assert headline in capsys.readouterr().out
    assert run_cli(["--runtime-dir", str(tmp_path), "status", "--json"]) == 3
    found = json.loads(capsys.readouterr().out)
    assert (found["locked"], found["state"], found["reason_code"]) == (locked, state, "daemon-down")
    assert found.keys() == STATUS.keys()


def test_a_layer_that_does_not_stand_is_named() -> None:
    layers = {"base": {"state": "ok", "detail": ""}, "egress_guard": {"state": "unsupported", "detail": "nft 0.9.3"}}
    shown = view.render_text(STATUS | {"layers": layers, "missing_features": ["egress hook"]}, width=80)
    assert "1 of 2 layers in place" in shown
    assert "egress_guard: this kernel cannot do it, nft 0.9.3" in shown
    assert "lack egress hook" in shown


def test_the_absence_of_the_opening_is_no_news_while_locked() -> None:
    layers = {"base": {"state": "ok", "detail": ""}, "lease": {"state": "missing", "detail": ""}}
    assert "lease: missing" in view.render_text(STATUS | {"layers": layers}, width=80)
    shown = view.render_text(STATUS | {"layers": layers, "state": "LOCKED"}, width=80)
    assert "1 of 1 layer in place" in shown
    assert "lease" not in shown


def test_status_fits_a_terminal_of_80_by_24() -> None:
    layers = {str(number): {"state": "broken", "detail": "x" * 50} for number in range(7)}
    shown = view.render_text(STATUS | {"layers": layers, "reason": "word " * 30, "next_step": "word " * 30}, width=80)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines()
    assert len(lines) <= 21
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("odd", [5, [], "x", None, {"x": 5}])
def test_odd_fields_do_not_break_the_display(odd: object) -> None:
    for field in STATUS:
        assert view.render_text(STATUS | {field: odd}, width=80)


def test_control_characters_of_the_daemon_do_not_reach_the_terminal() -> None:
    shown = view.render_text(STATUS | {"reason": "a\x1b]0;title\x07b", "region": "\x1b[2J"}, width=80)
    assert "\x1b]" not in shown
    assert "\x1b[2J" not in shown


def test_watching_shows_changes_and_survives_the_end_of_the_daemon(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rounds = iter([[STATUS, STATUS | {"state": "LOCKED"}], [], []])

    def watch_status(_runtime_dir: Path) -> object:
        yield from next(rounds)
        raise DaemonDownError("gone")

    sleeps: list[float] = []

    def sleep(seconds: float) -> None:
        sleeps.append(seconds)
        if len(sleeps) == 3:
            raise KeyboardInterrupt

    fake_kernel(monkeypatch, locked=True)
    monkeypatch.setattr(client, "watch_status", watch_status)
    monkeypatch.setattr(time, "sleep", sleep)
    assert run_cli(["--runtime-dir", str(tmp_path), "status", "--watch", "--json"]) == 0
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [status["reason_code"] for status in shown] == ["open", "open", "daemon-down"]


@pytest.mark.requirement("R21")
@pytest.mark.parametrize("command", ["start", "stop", "restart", "reload"])
def test_changing_without_root_is_one_line_and_exit_code_77(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert run_cli([command]) == 77
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"Cannot run 'psiphon-vpn {command}': only root may do this. Run it again with sudo" in said


def test_a_command_tells_what_happened(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(client, "send_command", lambda _dir, _name: STATUS | {"state": "LOCKED"})
    assert run_cli(["stop"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("The tunnel is closed.")
    assert "PROTECTED and offline" in shown


def test_a_wrong_command_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["bogus"], ["status", "--bogus"], ["help", "bogus"]):
        assert run_cli(argv) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_help_is_shown_for_the_program_and_for_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in ([], ["help"], ["--help"]):
        assert run_cli(argv) == 0
        assert "restart" in capsys.readouterr().out
    assert run_cli(["help", "status"]) == 0
    assert "--watch" in capsys.readouterr().out


def test_a_fault_of_the_program_is_one_line_and_a_traceback_only_with_debug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_runtime_dir: Path) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(view, "find_status", fail)
    assert run_cli(["status"]) == 70
    said = capsys.readouterr().err
    assert "ZeroDivisionError" in said
    assert said.count("\n") == 1
    assert run_cli(["--debug", "status"]) == 70
    assert "Traceback" in capsys.readouterr().err


def test_the_demonstration_needs_both_binaries_or_neither(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "core").touch()
    assert run_cli(["demo", "--core", str(tmp_path / "core")]) == 1
    assert "Give --core and --server together." in capsys.readouterr().err


@pytest.mark.parametrize("failing", ["ruff", "mypy", "pytest", None])
def test_the_test_command_fails_if_any_check_fails_and_runs_pytest_last(
    monkeypatch: pytest.MonkeyPatch, failing: str | None
) -> None:
    ran: list[list[str]] = []

    def call(argv: list[str], **_options: object) -> int:
        ran.append(argv[2:])
        return int(argv[2] == failing)

    monkeypatch.setattr(subprocess, "call", call)
    assert run_cli(["test", "-k", "name"]) == (1 if failing else 0)
    assert [argv[0] for argv in ran] == ["ruff", "ruff", "mypy", "pytest"]
    assert ran[-1][1:] == ["-k", "name"]


def test_the_test_command_says_that_an_installed_copy_has_no_tests(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(develop, "_PROJECT_ROOT", tmp_path)
    assert run_cli(["test"]) == 1
    assert "installed copy" in capsys.readouterr().err


def test_a_refusal_of_the_service_is_shown_as_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_dir: Path, _name: str) -> None:
        raise UserError("Cannot reload", "line 3 is wrong", "Correct it.", exit_code=9)

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(client, "send_command", refuse)
    assert run_cli(["reload"]) == 9
    assert capsys.readouterr().err.strip() == "Cannot reload: line 3 is wrong. Correct it."


def test_status_starts_without_the_slow_libraries(figure: Figure) -> None:
    probe = (
        "import sys; from psiphon_vpn.cli.main import run_cli; run_cli(['--runtime-dir', '/nonexistent', 'stop']);"
        "print([name for name in ('rich', 'pyroute2', 'asyncio', 'hypothesis') if name in sys.modules])"
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    figure("a command that finds no daemon, s (0.06 on an idle core)", time.monotonic() - start)
    assert done.stdout.strip() == "[]"
