# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs other programs, for the whole of this one: argv list, clean environment, no stdin, accepted exit codes."""

import asyncio
import contextlib
import logging
import os
import shlex
import signal
import subprocess
from collections import deque
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Final, TypeVar

from psiphon_vpn.errors import UserError, join_line
from psiphon_vpn.i18n import _

log = logging.getLogger(__name__)
T = TypeVar("T")

# A fixed PATH: sudo and cron give one without sbin, and a caller's PATH must not choose which nft root runs.
CLEAN_ENV: Final[Mapping[str, str]] = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
}
MAX_STDERR_IN_MESSAGE = 2000
PATIENCE: Final = 40.0
"""The time limit of a command without one of its own, seconds. It matters only for what hangs: 10 s were too few for
nft on a slow computer that is busy starting."""
_REMEMBERED = 64
_started: deque[int] = deque(maxlen=_REMEMBERED)
_running: set[int] = set()
_CHOSEN_BY_KERNEL: Final = 1 << 31


class CommandError(UserError):
    """A command failed, could not be started, or took too long.

    Attributes:
        argv: the command.
        returncode: its exit code, negative for a signal; None if it did not start or timed out.
        stdout: its standard output.
        stderr: its standard error.
    """

    def __init__(
        self, argv: Sequence[str], why: str, *, returncode: int | None = None, stdout: str = "", stderr: str = ""
    ) -> None:
        self.argv = tuple(argv)
        self.returncode = returncode
        self.stdout = stdout
        self.stderr = stderr
        super().__init__(
            _("A command failed"), why, _("To see it again, run: {command}").format(command=shlex.join(argv))
        )


def _check(
    argv: Sequence[str], returncode: int, stdout: str, stderr: str, ok: Container[int]
) -> subprocess.CompletedProcess[str]:
    if returncode in ok:
        return subprocess.CompletedProcess(list(argv), returncode, stdout, stderr)
    said = join_line(stderr)[:MAX_STDERR_IN_MESSAGE] or _("it said nothing")
    why = _("{name} ended with code {code}: {said}").format(name=argv[0], code=returncode, said=said)
    raise _failed(CommandError(argv, why, returncode=returncode, stdout=stdout, stderr=stderr))


def _failed(error: CommandError) -> CommandError:
    # Logged only here, so that a failure appears once, with a command that can be pasted.
    log.debug("command failed: %s: %s", shlex.join(error.argv), error.why)
    return error


def _not_started(argv: Sequence[str], cause: OSError) -> CommandError:
    return _failed(
        CommandError(argv, _("{name} cannot be started: {cause}").format(name=argv[0], cause=cause.strerror or cause))
    )


def _too_slow(argv: Sequence[str], timeout: float, stderr: str) -> CommandError:
    why = _("{name} did not finish within {seconds:g} seconds").format(name=argv[0], seconds=timeout)
    return _failed(CommandError(argv, why, stderr=stderr))


def _kill_group(pid: int) -> None:
    # The command leads its own session, so its children go with it and no pipe stays open behind it.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def run(
    argv: Sequence[str],
    *,
    input: str | None = None,
    ok: Container[int] = (0,),
    timeout: float = PATIENCE,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end.

    Args:
        argv: the command and its arguments; never a shell line.
        input: text for its standard input; without it, standard input is empty.
        ok: exit codes of success.
        timeout: seconds, after which it and its children are killed.

    Returns:
        The finished process with its output as text (bytes that are not UTF-8 become escapes).

    Raises:
        CommandError: it could not be started, took too long, or ended with a code outside `ok`.
    """
    try:
        process = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(CLEAN_ENV),
            encoding="utf-8",
            errors="backslashreplace",
            start_new_session=True,
        )
    except OSError as cause:
        raise _not_started(argv, cause) from cause
    with process:
        try:
            stdout, stderr = process.communicate(input, timeout=timeout)
        except subprocess.TimeoutExpired as expired:
            _kill_group(process.pid)
            stdout, stderr = process.communicate()
            raise _too_slow(argv, timeout, stderr) from expired
        except BaseException:
            _kill_group(process.pid)
            raise
    return _check(argv, process.returncode, stdout, stderr, ok)


@contextlib.contextmanager
def follow_lines(argv: Sequence[str]) -> Iterator[Iterator[str]]:
    """Run a command that goes on, and yield the lines of its standard output as they come. It ends with the context.

    Raises:
        CommandError: it could not be started.
    """
    try:
        process = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=dict(CLEAN_ENV),
            encoding="utf-8",
            errors="backslashreplace",
            start_new_session=True,
        )
    except OSError as cause:
        raise _not_started(argv, cause) from cause
    with process:
        assert process.stdout is not None
        try:
            yield iter(process.stdout)
        finally:
            _kill_group(process.pid)


async def run_async(
    argv: Sequence[str],
    *,
    input: str | None = None,
    ok: Container[int] = (0,),
    timeout: float = PATIENCE,  # noqa: ASYNC109  the same contract as run()
) -> subprocess.CompletedProcess[str]:
    """Do what `run` does without blocking the event loop; cancelling it kills the command."""
    process = await _start_async(argv, with_input=input is not None)
    return await _finish(argv, process, input, ok, timeout)


def require_result(result: T | BaseException) -> T:
    """One of what `asyncio.gather` returned with its exceptions: the result, or the exception is raised."""
    if isinstance(result, BaseException):
        raise result
    return result


def was_started_here(port: int) -> bool:
    """Whether a netlink port id belongs to one of the last commands that `run_async` started.

    The port id of a process's first socket is its process id in its own pid namespace, or if that is taken, some
    negative number (netlink_autobind). A negative number is attributed to a command while one is running.
    """
    return port in _started or (port >= _CHOSEN_BY_KERNEL and bool(_running))


async def _start_async(argv: Sequence[str], *, with_input: bool) -> asyncio.subprocess.Process:
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE if with_input else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=dict(CLEAN_ENV),
            start_new_session=True,
        )
    except OSError as cause:
        raise _not_started(argv, cause) from cause
    _started.append(process.pid)
    _running.add(process.pid)
    return process


async def _finish(
    argv: Sequence[str], process: asyncio.subprocess.Process, input: str | None, ok: Container[int], seconds: float
) -> subprocess.CompletedProcess[str]:
    try:
        return await _communicate(argv, process, input, ok, seconds)
    finally:
        _running.discard(process.pid)


async def _exchange(process: asyncio.subprocess.Process, input: bytes | None) -> tuple[bytes, bytes]:
    output = await process.communicate(input)
    if process.stdin is not None:
        # communicate() ignores that the command closed its input early, but leaves the pipe's own error unread, and
        # asyncio writes a traceback about that into the log.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            await process.stdin.wait_closed()
    return output


async def _communicate(
    argv: Sequence[str], process: asyncio.subprocess.Process, input: str | None, ok: Container[int], seconds: float
) -> subprocess.CompletedProcess[str]:
    communication = asyncio.ensure_future(_exchange(process, None if input is None else input.encode()))
    try:
        out, err = await asyncio.wait_for(asyncio.shield(communication), seconds)
    except TimeoutError as expired:
        _kill_group(process.pid)
        out, err = await communication
        raise _too_slow(argv, seconds, err.decode(errors="backslashreplace")) from expired
    except BaseException:
        _kill_group(process.pid)
        await asyncio.shield(communication)
        raise
    assert process.returncode is not None
    return _check(
        argv,
        process.returncode,
        out.decode(errors="backslashreplace"),
        err.decode(errors="backslashreplace"),
        ok,
    )
