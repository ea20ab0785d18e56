# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads what others have written in a process that can do nothing else: without privileges, files or network.

A parser that hostile input takes over must have won nothing. So root and the daemon parse nothing of that kind
themselves: a fresh interpreter imports the parser, gives up everything (setresuid(2) to nobody, no capability,
no_new_privs, and setrlimit(2): with RLIMIT_NOFILE 0 no file and no socket can be opened any more), and only then reads
the input. Input and output are files in memory, so that neither side can keep the other waiting; the limit for the size
of files is the limit of the output.

The daemon is not root and cannot become nobody: there the process stays psiphon-user's, without the daemon's
capabilities and with the same limits.
"""

from __future__ import annotations

import contextlib
import enum
import importlib
import os
import resource
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from psiphon_vpn.accounts import find_user
from psiphon_vpn.i18n import find_language, load_translations
from psiphon_vpn.memory_files import memory_file, write_all
from psiphon_vpn.run import CLEAN_ENV

_NOBODY: Final = 65534
"""The uid and gid of nobody on every system that this runs on, should its files not have the name."""
_BEGIN: Final = "import sys; sys.path.insert(0, sys.argv.pop(1)); from psiphon_vpn.unprivileged import serve; serve()"
_NO_CAPABILITIES: Final = ("CapInh", "CapPrm", "CapEff", "CapAmb")
_DROP: Final = ("setpriv", "--no-new-privs", "--inh-caps=-all", "--ambient-caps=-all", "--pdeathsig=KILL")
_CHUNK: Final = 1 << 20
_SAID: Final = 4096


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What such a process may use.

    Attributes:
        memory: bytes of address space; the interpreter itself needs about 40 MiB.
        cpu: seconds of processor time.
        wait: seconds until it is killed.
        output: bytes.
    """

    memory: int = 512 << 20
    cpu: int = 20
    wait: float = 60.0
    output: int = 1 << 20


class Trouble(enum.StrEnum):
    """Why there is no result."""

    NOT_STARTED = "not_started"
    """The process could not be started, or could not give up its privileges."""
    TOO_SLOW = "too_slow"
    ENDED = "ended"
    """It ended without a result: usually for want of memory, or a fault of the parser."""


class UnprivilegedError(Exception):
    """There is no result.

    Attributes:
        trouble: the kind.
        said: the last line of its standard error: for developers, since hostile input may have chosen it.
    """

    def __init__(self, trouble: Trouble, said: str = "") -> None:
        super().__init__(f"{trouble}: {said}" if said else str(trouble))
        self.trouble = trouble
        self.said = said


def run_unprivileged(
    module: str, argv: Sequence[str], stdin: bytes, limits: Limits | None = None, *, pass_fds: Sequence[int] = ()
) -> bytes:
    """Call `work(argv, stdin)` of a module in a process of its own that can do nothing else.

    Args:
        module: full name of the module, which imports all that it needs when it is imported.
        argv: arguments for it, which others may see in a list of processes.
        stdin: the input.
        limits: what it may use.
        pass_fds: descriptors that it inherits. It can open no other.

    Returns:
        What `work` returned: bytes that hostile input may have chosen.

    Raises:
        UnprivilegedError: there is no result.
    """
    limits = limits or Limits()
    numbers = f"{limits.memory} {limits.cpu} {limits.output}"
    flags = "-ISB" if sys.flags.no_site else "-IB"
    package = str(Path(__file__).resolve().parent.parent)
    command = [*_DROP, "--", sys.executable, flags, "-c", _BEGIN, package, numbers, module, *argv]
    code, output, said = _run(command, stdin, limits, pass_fds=pass_fds)
    if code == _REFUSED:
        raise UnprivilegedError(Trouble.NOT_STARTED, said)
    if code != 0:
        raise UnprivilegedError(Trouble.ENDED, said)
    return output


def _find_nobody() -> tuple[int, int]:
    with contextlib.suppress(OSError):
        if (user := find_user("nobody")) is not None and user.uid != 0 and user.gid != 0:
            return user.uid, user.gid
    return _NOBODY, _NOBODY


def _run(command: Sequence[str], stdin: bytes, limits: Limits, *, pass_fds: Sequence[int]) -> tuple[int, bytes, str]:
    """Run a command with files in memory in the place of pipes; returns code, output and last line of its errors."""
    with memory_file(stdin) as given, memory_file(b"") as output, memory_file(b"") as errors:
        try:
            process = subprocess.Popen(
                list(command),
                stdin=given,
                stdout=output,
                stderr=errors,
                env={**CLEAN_ENV, "LANGUAGE": find_language()},
                cwd="/",
                pass_fds=tuple(pass_fds),
                start_new_session=True,
            )
        except OSError as error:
            raise UnprivilegedError(Trouble.NOT_STARTED, error.strerror or str(error)) from error
        try:
            ended = _await_end(process.pid, limits.wait)
        finally:
            # Whatever happens here, nothing of it stays behind. It leads its own group. Until it is waited for, the
            # group's number is nobody else's; afterwards it may be anybody's.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
        if not ended:
            raise UnprivilegedError(Trouble.TOO_SLOW)
        said = _read_all(errors, _SAID).decode("utf-8", "backslashreplace").strip().rpartition("\n")[2]
        return code, _read_all(output, limits.output), said


def _await_end(pid: int, seconds: float) -> bool:
    """Whether a child of ours ends within a time. It stays to be waited for."""
    watch = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(watch, select.POLLIN)
        return bool(poll.poll(seconds * 1000))
    finally:
        os.close(watch)


def _read_all(descriptor: int, high: int) -> bytes:
    """A file in memory from its beginning, whatever its offset, which two processes share."""
    parts, offset = [], 0
    while offset < high and (part := os.pread(descriptor, min(_CHUNK, high - offset), offset)):
        parts.append(part)
        offset += len(part)
    return b"".join(parts)


# -- in the process itself -----------------------------------------------------------------------------------------

_REFUSED: Final = 77
"""Exit code: the privileges could not be given up, so nothing was read."""


def serve() -> NoReturn:
    """Give up everything, then work: the whole of such a process."""
    numbers, name, *argv = sys.argv[1:]
    memory, cpu, output = map(int, numbers.split())
    module = importlib.import_module(name)  # as the caller's user, who alone may be able to read the program
    load_translations()  # later it can open no file
    try:
        _give_up(memory=memory, cpu=cpu, output=output)
    except (OSError, ValueError) as error:
        write_all(2, f"{type(error).__name__}: {error}".encode())
        os._exit(_REFUSED)
    result = module.work(argv, _read_all(0, os.fstat(0).st_size))
    write_all(1, result)
    # Without Python's own end: nothing of this process is needed any more.
    os._exit(0)


def _give_up(*, memory: int, cpu: int, output: int) -> None:
    if os.geteuid() == 0:
        uid, gid = _find_nobody()
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    _check_status(Path("/proc/self/status").read_text(encoding="ascii", errors="replace"))
    for limit, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_CPU, cpu),
        (resource.RLIMIT_FSIZE, output),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_NOFILE, 0),
    ):
        resource.setrlimit(limit, (value, value))


def _check_status(text: str) -> None:
    """Accept a process without root's uid, capabilities, and a way to get some; raises ValueError."""
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    if "0" in fields.get("Uid", "0").split():
        raise ValueError("still root")
    if any(int(fields.get(name, "1"), 16) for name in _NO_CAPABILITIES):
        raise ValueError("still with capabilities")
    if fields.get("NoNewPrivs", "").strip() != "1":
        raise ValueError("new privileges are possible")
