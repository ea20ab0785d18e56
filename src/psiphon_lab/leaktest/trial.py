# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What an attack may use: the machine under test, the hosts around it, and a fork server that fires its shots."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from psiphon_lab.addresses import LAN_A, LAN_B, Lan
from psiphon_lab.fork_server import PAUSE, ForkServer, Outcome, Shot
from psiphon_lab.leaktest.held_state import HeldState, Point
from psiphon_lab.leaktest.model import Actor, Mode, Trace
from psiphon_lab.leaktest.testbed import Testbed
from psiphon_lab.namespace import Host, LabError
from psiphon_lab.pace import PACE
from psiphon_lab.private_files import PrivateFiles, open_private_files
from psiphon_lab.probe import FIRST_PORT, PORTS
from psiphon_lab.probe_runner import NOBODY

CHURN = frozenset({Mode.RESTARTING, Mode.UPGRADING, Mode.FLUSHED, Mode.TRANSITION})
"""States that are a loop: a shot is repeated for at least one turn of it, and for CHURN_SECONDS."""
CHURN_SECONDS = 0.8 / PACE
CONTROL_PAUSE = 0.05 * PACE
"""Pause between two rounds without the lock, seconds: a few rounds are enough to be seen."""
RUN_SECONDS = 60.0 * PACE
"""Time limit of a program that an attack runs: enough beside three other worlds on a slow machine."""
DIRECTORIES = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass
class Attempt:
    """A shot that was fired, and its outcome."""

    shot: Shot
    by: Actor
    trace: Trace
    outcome: Outcome | None = None
    needs: str = ""


@dataclass
class Trial:
    """One cell of the matrix while it is tried.

    Attributes:
        mode: the state of the machine.
        attack: the attack's id.
        families: the IP versions of the attack.
        numbers: a number for each shot.
        actions: what was done, one line each, for the report.
        attempts: the shots so far.
        claimed: networks that the provider claims are on its link, so that the core may look for its server there.
        cleanups: what to do at the end of the cell.
        held: the state, or None before the lock.
    """

    testbed: Testbed
    fork_server: ForkServer
    mode: Mode
    attack: str
    families: tuple[int, ...]
    numbers: Iterator[int]
    actions: list[str] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    claimed: list[str] = field(default_factory=list)
    cleanups: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    held: HeldState | None = None
    _begun_at: Point | None = None
    _ends: set[Path] = field(default_factory=set)
    _waiting: list[tuple[Attempt, int, float]] = field(default_factory=list)

    @property
    def locked(self) -> bool:
        """Whether the machine is locked; false in the positive control."""
        return self.mode is not Mode.CONTROL

    @property
    def churn(self) -> bool:
        """Whether the state is a loop."""
        return self.mode in CHURN

    @property
    def begun(self) -> Any:
        """What the attack's `before_lock` returned."""
        return self.testbed.begun.get(self.attack)

    @property
    def client(self) -> Host:
        """The machine under test."""
        return self.testbed.world.client

    @property
    def lans(self) -> tuple[Lan, ...]:
        """The providers to whose wires shots are bound."""
        return (LAN_A, LAN_B) if self.mode in {Mode.CONTROL, Mode.TRANSITION} else (LAN_A,)

    def host_of(self, by: Actor) -> Host:
        """The host from which an actor shoots."""
        world = self.testbed.world
        others = {Actor.CONTAINER: world.container, Actor.NEIGHBOUR: world.neighbour, Actor.PROVIDER: world.provider_a}
        return others.get(by, world.client)

    def fire(
        self,
        function: Callable[..., str | None],
        *,
        by: Actor,
        name: str,
        family: int,
        seconds: float = 0.0,
        trace: Callable[[Shot], Trace] | None = None,
        needs: str = "",
        **arguments: Any,
    ) -> Shot:
        """Fire a shot; returns at once.

        Args:
            function: makes the shot; called with it and `arguments`, in its own process.
            by: the actor.
            name: the shot's name, unique in the attack.
            family: 4 or 6.
            seconds: how long to repeat it, at least.
            trace: returns how to recognise its frames; the default is by token and source port.
            needs: the mechanism of the kernel without which nothing stops it, or "".
            arguments: values that JSON can represent.
        """
        number = next(self.numbers)
        shot = Shot(name=name, family=family, token=f"lk{number:08d}", source_port=FIRST_PORT + number % PORTS)
        known = Trace(token=shot.data, source_port=shot.source_port) if trace is None else trace(shot)
        attempt = Attempt(shot, by, known, needs=needs)
        lasting = max(seconds, CHURN_SECONDS) if self.churn else seconds
        uid = NOBODY if by is Actor.USER else 0
        until = None
        if self.churn and self.held is not None:
            if self._begun_at is None:
                self._begun_at = self.held.locate()
            until = self.scratch_path(f"{shot.token}.end", shared=by in {Actor.NEIGHBOUR, Actor.PROVIDER})
            until.parent.mkdir(parents=True, exist_ok=True)
            self._ends.add(until)
        order = self.fork_server.order(
            self.host_of(by),
            function,
            shot,
            uid=uid,
            seconds=lasting,
            until=until,
            arguments=arguments,
            pause=PAUSE if self.locked else CONTROL_PAUSE,
        )
        self.attempts.append(attempt)
        self._waiting.append((attempt, order, lasting))
        return shot

    def note_shot(self, *, by: Actor, name: str, family: int, trace: Callable[[Shot], Trace]) -> Shot:
        """Count an attempt that a real tool makes, or this process itself."""
        number = next(self.numbers)
        shot = Shot(name=name, family=family, token=f"lk{number:08d}", source_port=FIRST_PORT + number % PORTS)
        self.attempts.append(Attempt(shot, by, trace(shot), Outcome(rounds=1, results={"made": 1})))
        return shot

    def settle(self) -> None:
        """Wait for the outcomes of all shots; in a state that is a loop, until it has made a whole turn meanwhile."""
        if self._begun_at is not None and self.held is not None:
            self.held.wait_past(self._begun_at)
            self._begun_at = None
        for path in self._ends:
            path.touch()
        for attempt, order, lasting in self._waiting:
            attempt.outcome = self.fork_server.wait(order, seconds=lasting)
        self._waiting.clear()
        for path in self._ends:
            path.unlink()
        self._ends.clear()

    def wait(self, seconds: float) -> None:
        """Wait for some time, in seconds."""
        time.sleep(seconds)

    def run(
        self,
        *argv: str | Path,
        host: Host | None = None,
        check: bool = False,
        input: str | None = None,
        files: PrivateFiles | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program as root and note it for the report.

        host: the client by default. files: private files for it. Raises LabError if it fails and `check`.
        """
        words = [str(word) for word in argv]
        done = (host or self.client).run(
            words if files is None else files.command(words), check=False, input=input, timeout=RUN_SECONDS
        )
        line = shlex.join(str(word) for word in argv)
        where = "" if host is None or host is self.client else f" on {host.name}"
        self.actions.append(f"{line}{where}" + (f" (code {done.returncode})" if done.returncode else ""))
        if check and done.returncode:
            last = (done.stderr or done.stdout).strip().splitlines()[-1:]
            raise LabError(f"{line}{where}: code {done.returncode}: {' '.join(last)}")
        return done

    def say(self, text: str) -> None:
        """Note another action for the report."""
        self.actions.append(text)

    def undo(self, *argv: str, host: Host | None = None) -> None:
        """Run a program at the end of the cell, in any case."""
        self.cleanups.callback((host or self.client).run, list(argv), check=False)

    def spawn(
        self, argv: Sequence[str], *, host: Host | None = None, files: PrivateFiles | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a program that runs until the end of the cell. files: private files for it."""
        words = argv if files is None else files.command(argv)
        child = (host or self.client).spawn(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.actions.append(shlex.join(argv) + (f" on {host.name}" if host else ""))
        self.cleanups.callback(_end, child)
        return child

    def open_files(self) -> PrivateFiles:
        """Private files on the client, until the end of the cell."""
        directory = self.scratch_path("own")
        directory.mkdir(parents=True, exist_ok=True)
        return self.cleanups.enter_context(open_private_files(self.client, directory))

    def scratch_path(self, name: str, *, shared: bool = False) -> Path:
        """The path of a file that `scratch` writes."""
        world = self.testbed.world
        return (world.shared if shared else world.directory) / "attacks" / self.attack / name

    def scratch(self, name: str, text: str = "", *, mode: int = 0o644, shared: bool = False) -> Path:
        """Write a file for a tool, in the world's own directory. shared: for a tool on a host outside the client."""
        path = self.scratch_path(name, shared=shared)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        path.chmod(mode)
        return path


def _end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(timeout=2)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def missing_tools(tools: Iterable[str]) -> tuple[str, ...]:
    """Those of these programs that this machine does not have."""
    return tuple(
        tool
        for tool in tools
        if not (Path(tool).exists() if tool.startswith("/") else shutil.which(tool, path=DIRECTORIES))
    )
