"""Hands: small functions run on the laboratory's hosts as anybody, within milliseconds.

One helper process is started with everything imported; for each order it forks, the child enters a host's namespaces,
becomes the wanted user and calls one function of `psiphon_lab.attacks`, once or again and again for a while. So an
attempt costs a fork and not the start of an interpreter. Run as `python -m psiphon_lab.hands`.
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
from typing import Any

from psiphon_lab.launch import clean_environment
from psiphon_lab.namespace import PATIENCE, Host, LabError
from psiphon_lab.probe import classify_error

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWNET = 0x00020000, 0x04000000, 0x40000000
PR_SET_PDEATHSIG, PR_SET_DUMPABLE = 1, 4
PAUSE = 0.004
"""Between two rounds of the same attempt, seconds."""
LONGEST = 3800
"""Bytes of a result line: less than PIPE_BUF, so that lines of several children never mix."""


@dataclass(frozen=True, kw_only=True)
class Shot:
    """One attempt to get something out, as the function that makes it is told.

    Attributes:
        name: what it is called in its attack, the same in every cell.
        family: 4 or 6.
        token: bytes that are in everything it sends.
        source_port: a port of its own, below the ephemeral range.
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
    """What became of a shot: how often it was made, and what the program that made it met, counted."""

    rounds: int
    met: dict[str, int]
    answer: str = ""
    error: str = ""


class Hands:
    """The helper process. A context manager.

    Args:
        modules: with the functions that will be ordered: imported once, beforehand.
    """

    def __init__(self, modules: Sequence[str] = ()) -> None:
        self._modules = modules
        self._child: subprocess.Popen[bytes] | None = None
        self._outcomes: dict[int, Outcome] = {}
        self._news = threading.Condition()
        self._next = 0
        self._reader = threading.Thread(target=self._read, name="hands", daemon=True)

    def __enter__(self) -> Hands:
        self._child = subprocess.Popen(
            [sys.executable, "-m", "psiphon_lab.hands", *self._modules],
            env=clean_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            cwd="/",
        )
        self._reader.start()
        return self

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
        pause: float = PAUSE,
        arguments: dict[str, Any] | None = None,
    ) -> int:
        """Have a function called on a host; returns a number for `wait`.

        uid: its group has the same number. seconds: for how long it is repeated, with `pause` between; 0 calls it once.
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
        """What became of an order; an outcome with an error when it does not come."""
        deadline = time.monotonic() + seconds + PATIENCE
        with self._news:
            while number not in self._outcomes:
                left = deadline - time.monotonic()
                if left <= 0 or not self._reader.is_alive():
                    return Outcome(rounds=0, met={}, error="no result")
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
        # A process that changed its user may not write its own /proc files otherwise (user namespaces need it).
        libc.prctl(PR_SET_DUMPABLE, 1)


def _act(order: dict[str, Any]) -> Outcome:
    met: Counter[str] = Counter()
    answer, rounds = "", 0
    function = getattr(sys.modules[order["module"]], order["function"])
    _enter(order["pid"], order["uid"])
    deadline = time.monotonic() + order["seconds"]
    while True:
        try:
            said = function(Shot(**{**order["shot"], "round": rounds}), **order["arguments"])
            answer = said or answer
            met["answered" if said else "sent"] += 1
        except Exception as error:  # noqa: BLE001 - whatever it was, it is what the attempt met
            kind, name = classify_error(error)
            met[f"{kind} {name}".strip() if kind != "error" else f"error {name}: {error}"[:200]] += 1
        rounds += 1
        if time.monotonic() >= deadline:
            return Outcome(rounds=rounds, met=dict(met.most_common(6)), answer=answer[:500])
        time.sleep(order["pause"])


def _serve(order: dict[str, Any]) -> None:
    try:
        outcome = _act(order)
    except Exception as error:  # noqa: BLE001 - told to the one who ordered it
        outcome = Outcome(rounds=0, met={}, error=f"{type(error).__name__}: {error}"[:500])
    line = json.dumps({"number": order["number"], **asdict(outcome)}).encode()[:LONGEST] + b"\n"
    os.write(1, line)


def main() -> int:
    """Read orders until standard input ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from psiphon_lab import craft

    for name in sys.argv[1:]:
        importlib.import_module(name)
    craft.load()
    # A child that collects garbage would else copy all of this.
    gc.freeze()
    for line in sys.stdin.buffer:
        order = json.loads(line)
        if order["module"] not in sys.modules:
            importlib.import_module(order["module"])
        if os.fork() == 0:
            try:
                os.close(0)
                _serve(order)
            finally:
                os._exit(0)
    return 0


if __name__ == "__main__":
    # Under its own name too, so that a Shot made here is the Shot that attacks know.
    sys.exit(importlib.import_module("psiphon_lab.hands").main())
