# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A fork server: runs small functions on the laboratory's hosts, as any user, within milliseconds.

One helper process starts with everything imported. It forks for each order. The child enters a host's namespaces,
changes to the given user and calls one function, once or repeatedly for some time. So a shot costs a fork and not the
start of an interpreter. Run as `python -m psiphon_lab.fork_server`.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Protocol, Self

from psiphon_lab.launch import clean_environment
from psiphon_lab.namespace import PATIENCE, Host, LabError
from psiphon_lab.pace import PACE
from psiphon_lab.probe import classify_error

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWNET = 0x00020000, 0x04000000, 0x40000000
PR_SET_PDEATHSIG, PR_SET_DUMPABLE = 1, 4
PAUSE = 0.004 * PACE**2
"""Between two rounds of a shot, seconds. Longer on an emulated processor, which otherwise does nothing but shots."""
SHARING = "SOCKETS_ONLY"
"""A module that has it lets its functions only use sockets: a process may make several shots of a user at a time."""
LONGEST = 3800
"""Bytes of a result line: less than PIPE_BUF, so that lines of several children never mix."""


@dataclass(frozen=True, kw_only=True)
class Shot:
    """One attempt to get something out: the argument of the function that makes it.

    Attributes:
        name: its name in its attack, the same in every cell.
        family: 4 or 6.
        token: bytes in everything that it sends.
        source_port: a port that no other shot uses, below the ephemeral range.
        round: counts its repetitions from 0.
    """

    name: str
    family: int
    token: str
    source_port: int
    round: int = 0

    @property
    def data(self) -> bytes:
        """The token as payload."""
        return self.token.encode()


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of a shot: how often it was made, and how often its program got each result."""

    rounds: int
    results: dict[str, int]
    answer: str = ""
    error: str = ""


class Child(Protocol):
    """What is used of the helper process."""

    @property
    def stdin(self) -> IO[bytes] | None:
        """Takes orders."""

    @property
    def stdout(self) -> IO[bytes] | None:
        """Has the outcomes."""

    def wait(self, timeout: float | None = None) -> int:
        """As of Popen."""

    def kill(self) -> None:
        """As of Popen."""


class ForkServer:
    """The helper process. A context manager.

    Args:
        modules: imported once, beforehand: the modules of the functions that will be called.
    """

    def __init__(self, modules: Sequence[str] = ()) -> None:
        self.modules = modules
        self._child: Child | None = None
        self._outcomes: dict[int, Outcome] = {}
        self._news = threading.Condition()
        self._next = 0
        self._reader = threading.Thread(target=self._read, name="fork_server", daemon=True)

    def __enter__(self) -> Self:
        self._child = self.launch()
        self._reader.start()
        return self

    def launch(self) -> Child:
        """Start the helper process."""
        return subprocess.Popen(
            [sys.executable, "-m", "psiphon_lab.fork_server", *self.modules],
            env=clean_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            cwd="/",
        )

    def __exit__(self, *_: object) -> None:
        child = self._child
        if child is None or child.stdin is None:
            return
        child.stdin.close()
        try:
            child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        self._reader.join(timeout=5)
        if child.stdout is not None:
            child.stdout.close()

    def order(
        self,
        host: Host,
        function: Callable[..., str | None],
        shot: Shot,
        *,
        uid: int = 0,
        seconds: float = 0.0,
        until: Path | None = None,
        pause: float = PAUSE,
        arguments: dict[str, Any] | None = None,
    ) -> int:
        """Have a function called on a host; returns a number for `wait`.

        uid: also the number of its group. seconds: how long to repeat the call, with `pause` between; 0 calls it once.
        until: a file; the call is repeated until it exists, but at most for PATIENCE more.
        """
        assert self._child is not None
        assert self._child.stdin is not None
        self._next += 1
        order = {
            "number": self._next,
            "pid": host.pid,
            "module": function.__module__,
            "function": function.__name__,
            "uid": uid,
            "seconds": seconds,
            "until": None if until is None else str(until),
            "pause": pause,
            "shot": asdict(shot),
            "arguments": arguments or {},
        }
        try:
            self._child.stdin.write(json.dumps(order).encode() + b"\n")
            self._child.stdin.flush()
        except OSError as error:
            raise LabError("the laboratory's helper process ended") from error
        return self._next

    def wait(self, number: int, *, seconds: float = 0.0) -> Outcome:
        """Wait for the outcome of an order. If it does not come, the outcome contains an error."""
        deadline = time.monotonic() + seconds + PATIENCE
        with self._news:
            while number not in self._outcomes:
                left = deadline - time.monotonic()
                if left <= 0 or not self._reader.is_alive():
                    return Outcome(rounds=0, results={}, error="no result")
                self._news.wait(min(left, 0.5))
            return self._outcomes.pop(number)

    def _read(self) -> None:
        assert self._child is not None
        assert self._child.stdout is not None
        for line in self._child.stdout:
            fields = json.loads(line)
            with self._news:
                number = fields.pop("number")
                self._outcomes[number] = Outcome(**fields)
                self._news.notify_all()


# -- in the helper process ------------------------------------------------------------------------------------------


def _enter(pid: int, uid: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    kinds = (("net", CLONE_NEWNET), ("uts", CLONE_NEWUTS), ("mnt", CLONE_NEWNS))
    opened = [(os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY), flag) for name, flag in kinds]
    for descriptor, flag in opened:
        if libc.setns(descriptor, flag) != 0:
            raise OSError(ctypes.get_errno(), "setns")
        os.close(descriptor)
    if uid:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        # Otherwise a process that changed its user may not write to its own /proc files, as user namespaces require.
        libc.prctl(PR_SET_DUMPABLE, 1)


def _act(order: dict[str, Any], *, entered: bool) -> Outcome:
    results: Counter[str] = Counter()
    answer, rounds = "", 0
    function = getattr(sys.modules[order["module"]], order["function"])
    if not entered:
        _enter(order["pid"], order["uid"])
    deadline = time.monotonic() + order["seconds"]
    while True:
        try:
            returned = function(Shot(**{**order["shot"], "round": rounds}), **order["arguments"])
            answer = returned or answer
            results["answered" if returned else "sent"] += 1
        except Exception as error:  # noqa: BLE001 - any error is a result of the shot
            kind, name = classify_error(error)
            results[f"{kind} {name}".strip() if kind != "error" else f"error {name}: {error}"[:200]] += 1
        rounds += 1
        late = time.monotonic() - deadline
        if late >= 0 and (order["until"] is None or late > PATIENCE or os.path.exists(order["until"])):
            return Outcome(rounds=rounds, results=dict(results.most_common(6)), answer=answer[:500])
        time.sleep(order["pause"])


def _serve(order: dict[str, Any], *, entered: bool = False) -> None:
    try:
        outcome = _act(order, entered=entered)
    except Exception as error:  # noqa: BLE001 - reported to the caller
        outcome = Outcome(rounds=0, results={}, error=f"{type(error).__name__}: {error}"[:500])
    line = json.dumps({"number": order["number"], **asdict(outcome)}).encode()[:LONGEST] + b"\n"
    os.write(1, line)


def main() -> int:
    """Serve as a process of its own."""
    serve(sys.argv[1:])
    return 0


class _Shared:
    """Processes that stay on a host as a user, and make each shot in a thread."""

    def __init__(self) -> None:
        self._pipes: dict[tuple[int, int], int] = {}

    def take(self, order: dict[str, Any], line: bytes) -> bool:
        """Pass an order on; returns whether it can be carried out in this way."""
        if not getattr(sys.modules[order["module"]], SHARING, False):
            return False
        place = order["pid"], order["uid"]
        if place not in self._pipes:
            self._pipes[place] = self._start(*place)
        os.write(self._pipes[place], line)
        return True

    def _start(self, pid: int, uid: int) -> int:
        reading, writing = os.pipe()
        if os.fork():
            os.close(reading)
            return writing
        try:
            for other in (writing, *self._pipes.values()):
                os.close(other)
            os.dup2(reading, 0)
            os.close(reading)
            _enter(pid, uid)
            threading.stack_size(256 << 10)
            with open(0, "rb", closefd=False) as orders:
                for line in orders:
                    threading.Thread(target=_serve, args=(json.loads(line),), kwargs={"entered": True}).start()
        finally:
            os._exit(0)


def serve(modules: Sequence[str], *, sharing: bool = False) -> None:
    """Read orders until standard input ends.

    modules: to import beforehand. sharing: whether shots share processes where they may. These hold their hosts'
    namespaces until this ends; on an emulated processor a fork costs as much as all shots of an attack.
    """
    shared = _Shared()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from psiphon_lab import packet_builder

    for name in modules:
        importlib.import_module(name)
    packet_builder.load()
    # Otherwise a child's garbage collection would copy all of this.
    gc.freeze()
    for line in sys.stdin.buffer:
        order = json.loads(line)
        if order["module"] not in sys.modules:
            importlib.import_module(order["module"])
        if sharing and shared.take(order, line):
            continue
        if os.fork() == 0:
            try:
                os.close(0)
                _serve(order)
            finally:
                os._exit(0)


if __name__ == "__main__":
    # Imported under its own name, so that a Shot made here has the class that attacks import.
    sys.exit(importlib.import_module("psiphon_lab.fork_server").main())
