# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""errors, run and i18n."""

import ast
import asyncio
import errno
import gc
import os
import sys
from pathlib import Path

import pytest

import psiphon_vpn
from psiphon_vpn.errors import ConfigError, NotRootError, UserError
from psiphon_vpn.run import CommandError, run, run_async

SOURCE = Path(psiphon_vpn.__file__).parent
LABORATORY = SOURCE.with_name("psiphon_lab")


def test_a_user_error_is_one_line_of_what_why_and_next_step() -> None:
    error = UserError("Cannot lock", "nft said:\n  no\n", "Install nftables.")
    assert str(error) == "Cannot lock: nft said: no. Install nftables."
    assert error.exit_code == 1


@pytest.mark.requirement("R21")
def test_not_being_root_has_the_exit_code_77() -> None:
    assert NotRootError("psiphon-vpn stop").exit_code == 77


def test_a_configuration_error_names_file_and_line() -> None:
    assert "/etc/x.toml, line 7" in str(ConfigError(Path("/etc/x.toml"), "no", "Correct it.", line=7))


def test_a_command_runs_with_a_clean_environment_and_empty_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD_OF_A_STRANGER", "1")
    shown = run(["sh", "-c", "env; cat; echo end"]).stdout
    assert "STRANGER" not in shown
    assert "LC_ALL=C.UTF-8" in shown
    assert shown.endswith("end\n")


def test_input_reaches_the_command_and_odd_bytes_become_text() -> None:
    assert run(["cat"], input="schlüssel").stdout == "schlüssel"
    assert run(["printf", r"\377"]).stdout == r"\xff"


@pytest.mark.defect(3)
def test_a_failure_says_the_command_as_it_can_be_pasted_and_what_it_said() -> None:
    with pytest.raises(CommandError) as caught:
        run(["sh", "-c", "echo 'no such table' >&2; exit 3"])
    assert "sh -c 'echo '\"'\"'no such table" in str(caught.value)
    assert "ended with code 3: no such table" in caught.value.why
    assert caught.value.returncode == 3


def test_accepted_exit_codes_are_no_failure() -> None:
    assert run(["sh", "-c", "exit 3"], ok=(0, 3)).returncode == 3


def test_a_command_that_does_not_exist_is_named() -> None:
    with pytest.raises(CommandError, match="no-such-command cannot be started"):
        run(["no-such-command"])


def test_a_slow_command_is_killed_with_its_children() -> None:
    with pytest.raises(CommandError, match="did not finish within"):
        # The child keeps the output open: killing only the shell would wait for it.
        run(["sh", "-c", "sleep 1000 & sleep 1000"], timeout=0.2)


async def check_async_contract() -> None:
    assert (await run_async(["cat"], input="text")).stdout == "text"
    assert (await run_async(["false"], ok=(1,))).returncode == 1
    with pytest.raises(CommandError, match="ended with code 1"):
        await run_async(["false"])
    with pytest.raises(CommandError, match="cannot be started"):
        await run_async(["no-such-command"])
    with pytest.raises(CommandError, match="did not finish"):
        await run_async(["sh", "-c", "sleep 1000 & sleep 1000"], timeout=0.2)


async def check_cancelling(pid_file: Path) -> None:
    script = f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(30)"
    task = asyncio.create_task(run_async([sys.executable, "-c", script], timeout=60))
    async with asyncio.timeout(60):
        while not (pid_file.exists() and pid_file.read_text()):
            await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_the_asynchronous_form_keeps_the_same_contract() -> None:
    asyncio.run(check_async_contract())


def test_cancelling_kills_the_command(tmp_path: Path) -> None:
    asyncio.run(check_cancelling(tmp_path / "pid"))
    assert not Path("/proc", (tmp_path / "pid").read_text()).exists()


# Calls with a text, as first or named argument, that a user reads.
SPEAKING_CALLS = {"UserError", "ConfigError", "DaemonDownError", "CommandError", "Refused", "echo", "UsageError"}


def find_untranslated(tree: ast.AST) -> list[int]:
    """Lines where a call that shows text to the user has an untranslated text among its arguments."""
    lines = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        spoken = list(node.args) if name in SPEAKING_CALLS else []
        spoken += [keyword.value for keyword in node.keywords if keyword.arg == "help"]
        lines += [
            item.lineno
            for item in spoken
            if isinstance(item, ast.Constant) and isinstance(item.value, str) and any(map(str.isalpha, item.value))
        ]
    return lines


def test_every_text_for_the_user_goes_through_gettext() -> None:
    assert find_untranslated(ast.parse('echo("bare")')) == [1]
    found = {
        f"{path.relative_to(SOURCE.parent)}:{line}"
        for path in (*SOURCE.rglob("*.py"), *LABORATORY.rglob("*.py"))
        # Test instruments: their texts go to a log.
        if not path.match("psiphon_lab/standin*.py") and not path.match("psiphon_lab/host_*.py")
        for line in find_untranslated(ast.parse(path.read_text()))
    }
    assert found == set()


async def run_what_has_ended(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    reported: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: reported.append(context))
    write = os.write

    def write_too_late(descriptor: int, data: bytes) -> int:
        # The kernel's answer once the command has ended (write(2), EPIPE); on a busy machine that happens first.
        if data == b"input":
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", write_too_late)
    await run_async(["cat"], input="input")
    gc.collect()
    return reported


def test_a_command_that_ends_before_its_input_comes_leaves_no_traceback_in_the_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert asyncio.run(run_what_has_ended(monkeypatch)) == []
