# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line."""

import json
import os
import re
import subprocess
import sys
import time
import types
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import Figure

from psiphon_vpn import client
from psiphon_vpn.cli import checkout, main, view
from psiphon_vpn.cli.main import cli, run_cli
from psiphon_vpn.errors import DaemonDownError, UserError
from psiphon_vpn.system import last_resort

STATUS: dict[str, object] = {
    "state": "OPEN",
    "reason": "The tunnel is checked and open.",
    "reason_code": "open",
    "next_step": None,
    "since": "2026-01-02T03:04:05+00:00",
    "next_try": None,
    "next_try_seconds": None,
    "next_try_what": None,
    "locked": True,
    "intent": "connected",
    "region": "CA",
    "region_wanted": None,
    "regions_available": [],
    "servers": None,
    "connection": None,
    "lasting": False,
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


@pytest.fixture(autouse=True)
def in_berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Times are shown in this machine's time zone."""
    monkeypatch.setenv("TZ", "CET-1CEST")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def fake_daemon(monkeypatch: pytest.MonkeyPatch, status: Mapping[str, object]) -> None:
    monkeypatch.setattr(client, "request_status", lambda _runtime_dir: dict(status))


def test_status_of_an_open_tunnel_is_reported_in_sentences(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_daemon(monkeypatch, STATUS)
    assert run_cli(["status"]) == 0
    shown = capsys.readouterr().out
    assert "PROTECTED and connected" in shown
    assert "you appear on the internet in CA" in shown
    assert "eth0 (IPv4)" in shown
    assert "2026-01-02 04:04:05 CET" in shown
    assert "2 of 2 layers in place" in shown


def test_status_says_what_is_tried_next_and_when(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    change = {"state": "LOCKED", "next_try": "2026-01-02T03:05:06.789+00:00", "next_try_what": "connecting again"}
    fake_daemon(monkeypatch, STATUS | change)
    assert run_cli(["status"]) == 0
    assert re.search(r"^Next: +connecting again, at 04:05:06$", capsys.readouterr().out, re.MULTILINE)
    fake_daemon(monkeypatch, STATUS | change | {"next_try_seconds": 7.2})
    assert run_cli(["status"]) == 0
    assert re.search(r"^Next: +connecting again, in 8 s, at 04:05:06$", capsys.readouterr().out, re.MULTILINE)


def test_status_of_an_open_tunnel_tells_how_it_is_made_and_what_it_carries(capsys: pytest.CaptureFixture[str]) -> None:
    connection = {
        "protocol": "TLS-OSSH",
        "since": "2026-01-02T03:04:05+00:00",
        "seconds": 3900,
        "sent": 999,
        "received": 31_400_000,
        "rate_up": 0,
        "rate_down": 1_250_000,
        "limit_up": None,
        "limit_down": 2_000_000,
    }
    shown = view.render_text(STATUS | {"connection": connection}, width=80)
    assert "by TLS-OSSH, for 1 h 5 min" in shown
    assert "999 B sent, 31.4 MB received; now 0 B/s up, 1.2 MB/s down" in " ".join(shown.split())
    assert "the server carries at most 2.0 MB/s down" in shown


def test_status_while_connecting_tells_how_far_it_is() -> None:
    servers = {"known": 2000, "tried": 12, "protocols": ["OSSH", "TLS-OSSH"]}
    status = STATUS | {"state": "CONNECTING", "region": None, "servers": servers, "region_wanted": "DE"}
    shown = " ".join(view.render_text(status, width=80).split())
    assert "Servers: 2000 known, 12 tried (by OSSH, TLS-OSSH); only in DE, as you chose" in shown
    assert "Servers:" not in view.render_text(status | {"state": "OPEN"}, width=80)
    stored = {"profile": "psiphon", "entries": 2000, "fetched_at": "2026-01-01T03:04:05+00:00", "signed": True}
    shown = view.render_text(status | {"servers": {**servers, "list": stored}}, width=80)
    assert "2000 servers, received 2026-01-01 04:04:05 CET" in shown
    assert "Servers:" not in view.render_text(status | {"servers": {"known": None, "tried": 0}}, width=80)


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_no_word_is_broken_at_any_width(width: int) -> None:
    status = STATUS | {"next_step": "Type: sudo psiphon-vpn restart, or: sudo psiphon-vpn reload " * 3}
    words = {word for line in view.render_text(status, width=width).splitlines() for word in line.split()}
    assert "psiphon-vpn" in words
    assert "psiphon-" not in words


@given(st.integers(0, 10**18))
def test_any_number_of_bytes_is_short_and_right(count: int) -> None:
    connection = {"protocol": None, "seconds": 0, "sent": count}
    shown = view.render_text(STATUS | {"connection": connection}, width=100)
    found = re.search(r"([\d.]+) (B|kB|MB|GB|TB) sent", shown)
    assert found is not None
    size = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}[found[2]]
    assert abs(float(found[1]) * size - count) <= size * 0.051 + count * 1e-9


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
    ("locked", "reported"),
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
    reported: tuple[str, str],
) -> None:
    headline, state = reported
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

    def watch_status(_runtime_dir: Path, *, refresh: float | None) -> object:
        assert refresh is None, "programs get only changes"
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
    def fail(_runtime_dir: Path, **_options: object) -> None:
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
    monkeypatch.setattr(checkout, "PROJECT_ROOT", tmp_path)
    assert run_cli(["test"]) == 1
    assert "installed copy" in capsys.readouterr().err


def test_the_help_of_an_installed_copy_lists_only_what_works_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def list_shown() -> set[str]:
        assert run_cli(["help"]) == 0
        return {line.split()[0] for line in capsys.readouterr().out.partition("Commands:")[2].splitlines() if line}

    of_a_checkout = list_shown()
    monkeypatch.setattr(checkout, "PROJECT_ROOT", tmp_path)
    assert of_a_checkout - list_shown() == {"bench", "demo", "install", "leaktest", "package", "pin-core", "test"}


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


def test_the_table_of_commands_names_each_in_the_module_that_has_it() -> None:
    for home, commands in main.HOMES.items():
        assert tuple(command.name for command in import_module(f"psiphon_vpn.cli.{home}").COMMANDS) == commands
    assert set(cli.commands) == {"help", *(name for commands in main.HOMES.values() for name in commands)}


def test_a_command_is_not_kept_waiting_by_the_others() -> None:
    probe = (
        "import sys; from psiphon_vpn.cli.main import run_cli; run_cli(['rules']);"
        "print(*(name for name in sys.modules if name.startswith('psiphon_vpn.cli.')))"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    loaded = {name.rpartition(".")[2] for name in done.stdout.splitlines()[-1].split()}
    assert loaded & {*main.HOMES} == {"rules"}


HELP_NEEDS_NO = {"json", "ctypes", "dataclasses", "subprocess", "socket", "psiphon_vpn.policy", "psiphon_vpn.client"}


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"], ["rules"], ["rules", "--help"]], ids=" ".join)
def test_help_imports_no_command_but_the_one_that_it_is_about(words: list[str]) -> None:
    probe = (
        f"import sys; before = {{*sys.modules}}; sys.argv[1:] = {words}; from psiphon_vpn.__main__ import main\n"
        "try:\n    main()\nexcept SystemExit:\n    print(*({*sys.modules} - before))"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert {f"psiphon_vpn.cli.{home}" for home in main.HOMES} & loaded == (
        {"psiphon_vpn.cli.rules"} if "rules" in words else set()
    )
    # Of the standard library, only what click itself does not import.
    mine = loaded & HELP_NEEDS_NO
    assert mine <= ({"ctypes"} if words == ["rules"] else set())


@pytest.mark.parametrize("width", [40, 58, 64, 78, 100])
def test_the_list_of_all_commands_has_the_line_of_each(width: int) -> None:
    context = click.Context(cli, info_name="psiphon-vpn")
    shown, expected = click.HelpFormatter(width=width), click.HelpFormatter(width=width)
    cli.format_commands(context, shown)
    click.Group.format_commands(cli, context, expected)
    assert shown.getvalue() == expected.getvalue()
    assert "\n  status " in shown.getvalue()
    assert "system-sleep" not in shown.getvalue()


def test_help_notices_a_module_that_is_missing_without_importing_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    main.load_commands(["--help"])
    monkeypatch.setitem(main.HOMES, "absent", ("absent",))
    with pytest.raises(ImportError, match=r"psiphon_vpn\.cli\.absent"):
        main.load_commands(["--help"])


@pytest.mark.parametrize(
    ("words", "concerned"),
    [
        ([], False),
        (["--help"], False),
        (["help", "stranded"], False),
        (["status", "-h"], False),
        (["demo"], False),
        (["setup"], True),
        (["config", "set", "--help"], True),
        (["--debug", "setup"], True),
        (["--runtime-dir", "--help"], True),
    ],
    ids=str,
)
def test_accounts_come_from_files_for_each_command_but_not_for_help(words: list[str], concerned: bool) -> None:
    assert main.is_for_this_machine(words) is concerned


@pytest.mark.requirement("R1")
@pytest.mark.parametrize(("words", "module"), [("release", "manage"), ("log -n 5", "log"), ("--help", "bridge")])
def test_a_command_whose_module_does_not_load_says_that_the_program_is_damaged(words: str, module: str) -> None:
    """And `uninstall` works without it, by the same way."""
    broken = (
        f"import sys; sys.modules['psiphon_vpn.cli.{module}'] = None; sys.argv[1:] = {words.split()};"
        "from psiphon_vpn.__main__ import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", broken], capture_output=True, text=True, check=False)
    assert done.returncode == last_resort.EXIT_FAULT
    assert "This program is damaged" in done.stderr


def list_groups(group: click.Group, names: tuple[str, ...] = ()) -> Iterator[tuple[click.Group, tuple[str, ...]]]:
    yield group, names
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from list_groups(command, (*names, name))


@pytest.mark.parametrize(
    ("group", "names"), [pytest.param(*it, id=" ".join(it[1]) or "all") for it in list_groups(cli)]
)
def test_each_command_has_one_whole_line_in_the_help_of_a_terminal_with_80_columns(
    group: click.Group, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run_cli([*names, "--help"]) == 0
    lines = capsys.readouterr().out.partition("Commands:\n")[2].splitlines()
    shown = {name for name, command in group.commands.items() if not command.hidden}
    assert {line.split()[0] for line in lines} == shown
    assert len(lines) == len(shown), lines
    assert not [line for line in lines if "..." in line or not line.endswith(".")]
