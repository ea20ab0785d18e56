# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The quick commands: answered without click, exactly as click would, and with few modules."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import pty
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from psiphon_vpn import client
from psiphon_vpn.cli import quick_actions, quick_options, starting
from psiphon_vpn.cli.main import cli, run_cli
from psiphon_vpn.cli.quick import parse, run_quick
from psiphon_vpn.cli.quick_options import QUICK
from psiphon_vpn.errors import DaemonDownError, UserError
from psiphon_vpn.system.layout import Layout

SOURCES = Path(__file__).resolve().parents[2] / "src"
ANSWER: dict[str, object] = {
    "state": "CONNECTING",
    "reason": "It is connecting, and this sentence is long enough to be broken at a width of forty columns or so.",
    "since": "2026-01-02T03:04:05+00:00",
    "locked": True,
    "layers": {"base": {"state": "ok", "detail": ""}},
}

# -- the same command lines, with the same meaning ---------------------------------------------------------------------

Call = tuple[str, Path, dict[str, Any]]


class Recorder:
    """Stands in for the commands' work: records each call, and ends in the ways that `stop` and `status --json` can."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def call(self, name: str, runtime_dir: os.PathLike[str] | str, **parameters: Any) -> int:
        parameters.pop("prepare", None)
        self.calls.append((name, Path(runtime_dir), parameters))
        if name == "stop":
            raise UserError("It did not work", "a test says so", "Read the test.")
        return 3 if parameters.get("as_json") else 0


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Recorder()
    for command in QUICK:
        monkeypatch.setitem(quick_actions.ACTIONS, command.name, functools.partial(made.call, command.name))
    return made


Outcome = tuple[object, list[Call], str, str]


def observe(recorder: Recorder, run: Any, argv: Sequence[str]) -> Outcome:
    recorder.calls.clear()
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(argv)
    # A traceback names the code path, so only its presence is compared, which is what --debug is for.
    reported = err.getvalue()
    return code, list(recorder.calls), out.getvalue(), "Traceback" if "Traceback" in reported else reported


def compare(recorder: Recorder, argv: Sequence[str]) -> bool:
    """Whether the command line is answered without click; if so, the answer must be click's."""
    quick = observe(recorder, run_quick, argv)
    if quick[0] is None:
        assert quick == (None, [], "", ""), "what is left to click must not have begun"
        return False
    assert quick == observe(recorder, run_cli, argv)
    return True


def list_forms(option: click.Option) -> Iterator[list[str]]:
    """Every way to type an option."""
    for flag in (*option.opts, *option.secondary_opts):
        if option.is_flag:
            yield [flag]
        else:
            yield [flag, "30"]
            yield [f"{flag}=30"]


def test_every_option_of_a_quick_command_is_known_to_click_and_the_other_way_round(recorder: Recorder) -> None:
    for command in QUICK:
        known = cli.commands[command.name]
        options = [parameter for parameter in known.params if isinstance(parameter, click.Option)]
        assert {option.flag for option in command.options} == {flag for option in options for flag in option.opts}
        for words in ([word] for word in command.words) if command.words else ([],):
            assert compare(recorder, [command.name, *words])
            for option in options:
                for form in list_forms(option):
                    assert compare(recorder, [command.name, *form, *words])
                    assert compare(recorder, [command.name, *words, *form])
                    assert compare(recorder, ["--debug", "--runtime-dir", "/nonexistent", command.name, *words, *form])
                    assert compare(recorder, ["--runtime-dir=/nonexistent", command.name, *words, *form])


def test_the_version_is_the_same(recorder: Recorder) -> None:
    assert compare(recorder, ["--version"])


WORDS = [
    *(command.name for command in QUICK),
    *(option.flag for command in QUICK for option in command.options),
    *(word for command in QUICK for word in command.words),
    *"--debug --version --help -h -- - --runtime-dir --runtime-dir=/nonexistent --runtime-dir= /nonexistent".split(),
    *"/dev/null /tmp --timeout=5 --timeout= 5 0 1 86400 86401 -1 1e3 5.5 ² inf nan 0005 x --json=1 --js".split(),
    *"log rules help sta".split(),
    "",
    " ",
    "\n",
    "\udcff",
]


@given(argv=st.lists(st.sampled_from(WORDS), max_size=6))
@example(argv=[])
@example(argv=["system-sleep", "begin", "end"])
@example(argv=["status", "--json", "--json"])
@example(argv=["start", "--timeout", "--wait"])
@example(argv=["--runtime-dir", "--json", "status"])
def test_any_words_mean_the_same_to_both_or_are_left_to_click(argv: list[str]) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        made = Recorder()
        for command in QUICK:
            monkeypatch.setitem(quick_actions.ACTIONS, command.name, functools.partial(made.call, command.name))
        compare(made, argv)


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--help"],
        ["status", "--help"],
        ["status", "-h"],
        ["status", "x"],
        ["start", "--timeout", "0"],
        ["start", "--timeout"],
        ["system-sleep"],
        ["--runtime-dir", "/dev/null", "status"],
        ["log"],
    ],
)
def test_help_mistakes_and_other_commands_are_left_to_click(argv: list[str]) -> None:
    assert parse(argv) is None


def test_a_shell_that_asks_for_completions_is_left_to_click(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_PSIPHON_VPN_COMPLETE", "bash_complete")
    assert run_quick(["status"]) is None


# -- the same bytes ----------------------------------------------------------------------------------------------------


class Daemon(socketserver.ThreadingUnixStreamServer):
    """Answers every request with the same status."""

    daemon_threads = True


class Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        if self.rfile.readline():
            self.wfile.write(json.dumps({"jsonrpc": "2.0", "id": 1, "result": ANSWER}).encode() + b"\n")


@pytest.fixture(scope="module")
def runtime_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("run")
    with Daemon(str(directory / "control.sock"), Handler) as daemon:
        thread = threading.Thread(target=daemon.serve_forever, daemon=True)
        thread.start()
        yield directory
        daemon.shutdown()
        thread.join()


CLICK = "import sys; from psiphon_vpn.cli.main import run_cli; sys.exit(run_cli(sys.argv[1:]))"
QUICK_ONLY = """
import sys
from psiphon_vpn.cli.quick import run_quick
code = run_quick(sys.argv[1:])
assert code is not None
sys.exit(code)
"""


def run_program(code: str, argv: Sequence[str], *, columns: str, terminal: bool) -> tuple[int, bytes, bytes]:
    env = {"PYTHONPATH": str(SOURCES), "PATH": os.environ["PATH"], "COLUMNS": columns, "LC_ALL": "C.UTF-8", "TZ": "UTC"}
    command = [sys.executable, "-c", code, *argv]
    if not terminal:
        done = subprocess.run(command, capture_output=True, check=False, env=env, stdin=subprocess.DEVNULL)
        return done.returncode, done.stdout, done.stderr
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, env=env) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # EIO: the other end was closed
            while part := os.read(ours, 65536):
                shown += part
        os.close(ours)
        return process.wait(), shown, b""


@pytest.mark.parametrize("terminal", [False, True], ids=["piped", "terminal"])
@pytest.mark.parametrize(
    "words",
    [["status"], ["status", "--json"], ["stop"], ["restart"], ["reload"], ["start"], ["--version"], ["bogus-dir"]],
    ids=" ".join,
)
def test_what_is_printed_is_the_same_byte_for_byte(words: list[str], terminal: bool, runtime_dir: Path) -> None:
    argv = ["--runtime-dir", str(runtime_dir), *words]
    if words == ["--version"]:
        argv = words
    if words == ["bogus-dir"]:
        argv = ["--runtime-dir", str(runtime_dir / "none"), "stop"]
    for columns in ("44", "100"):
        quick = run_program(QUICK_ONLY, argv, columns=columns, terminal=terminal)
        assert quick == run_program(CLICK, argv, columns=columns, terminal=terminal)
        assert quick[1] or quick[2]
        if terminal and words == ["status"]:
            assert quick[1].startswith(b"\x1b[33m\x1b[1m"), "in colour"


# -- starting what runs already ----------------------------------------------------------------------------------------


@pytest.mark.requirement("R3")
@pytest.mark.parametrize(
    ("stage", "answer", "looks_closer"),
    [
        ("installed", {"locked": True}, False),
        ("installed", {"locked": False}, True),
        ("installed", {"locked": "true"}, True),
        ("installed", {}, True),
        ("installed", None, True),
        ("installing", {"locked": True}, True),
        ("removing", {"locked": True}, True),
        ("?", {"locked": True}, True),
        (None, {"locked": True}, True),
    ],
)
def test_start_looks_closer_unless_the_set_up_is_done_and_the_service_finds_the_machine_locked(
    stage: str | None,
    answer: dict[str, object] | None,
    looks_closer: bool,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    journal, looked, sent = tmp_path / "journal.json", list[bool](), list[str]()
    if stage is not None:
        journal.write_text(json.dumps({"format": 1, "stage": stage}))

    def request_status(_runtime_dir: object) -> dict[str, object]:
        if answer is None:
            raise DaemonDownError("a test says so")
        return answer

    def send_command(_runtime_dir: object, name: str) -> dict[str, object]:
        sent.append(name)
        return ANSWER

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(quick_options, "DEFAULT_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(Layout, "install_journal", journal)
    monkeypatch.setattr(client, "request_status", request_status)
    monkeypatch.setattr(client, "send_command", send_command)
    monkeypatch.setattr(starting, "start_if_stopped", lambda _platform, *, cut_remote: looked.append(cut_remote))
    code = quick_actions.start(tmp_path, cut_remote=True, wait=False, seconds=1, prepare=lambda: None)
    assert (code, sent, looked) == (0, ["start"], [True] * looks_closer)


# -- what is imported --------------------------------------------------------------------------------------------------

LIST_MODULES = """
import os, sys
os.geteuid = lambda: 0
before = set(sys.modules)
sys.path.insert(0, sys.argv[1])
from psiphon_vpn.cli.quick import run_quick
code = run_quick(sys.argv[2:])
assert code == 0, code
print(*sorted(set(sys.modules) - before))
"""
OWN = set(
    "psiphon_vpn psiphon_vpn.cli psiphon_vpn.cli.failures psiphon_vpn.cli.quick psiphon_vpn.cli.quick_actions "
    "psiphon_vpn.cli.quick_options psiphon_vpn.cli.view psiphon_vpn.client psiphon_vpn.errors psiphon_vpn.i18n "
    "psiphon_vpn.local_time psiphon_vpn.terminal psiphon_vpn.wrapping".split()
)
"""What `status` needs of this program."""
STANDARD = set(
    "__future__ array collections copyreg datetime enum errno functools genericpath itertools json keyword math "
    "operator os posixpath re reprlib select selectors socket stat sys textwrap types time".split()
)
"""What it needs of the standard library, by the name of the package; those with an underscore are C's."""
HEAVY = {"click", "asyncio", "rich", "httpx"}


def list_modules(argv: Sequence[str]) -> set[str]:
    """The modules that a quick command imports, run like the installed program, without site or user packages."""
    command = [sys.executable, "-ISB", "-c", LIST_MODULES, str(SOURCES), *argv]
    done = subprocess.run(command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL, timeout=60)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "words",
    [["status"], ["status", "--json"], ["start"], ["stop"], ["restart"], ["system-sleep", "begin"]],
    ids=" ".join,
)
def test_status_and_its_like_import_what_they_need_and_no_more(words: list[str], runtime_dir: Path) -> None:
    found = list_modules(["--runtime-dir", str(runtime_dir), *words])
    assert {name for name in found if name.startswith("psiphon_vpn")} <= OWN
    others = {name.partition(".")[0] for name in found if not name.startswith("psiphon_vpn")}
    assert {name for name in others if not name.startswith("_") or name == "__future__"} <= STANDARD


@pytest.mark.parametrize("name", [command.name for command in QUICK])
def test_no_quick_command_that_the_service_answers_imports_click_or_asyncio(name: str, runtime_dir: Path) -> None:
    words = ["end"] if name == "system-sleep" else []
    found = list_modules(["--runtime-dir", str(runtime_dir), name, *words])
    assert "psiphon_vpn.client" in found
    assert {module.partition(".")[0] for module in found} & HEAVY == set()


def test_the_version_needs_no_socket() -> None:
    found = list_modules(["--version"])
    assert "socket" not in found
    assert "json" not in found
