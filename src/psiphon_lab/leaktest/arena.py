"""What an attack has at hand: the machine under test, the hosts around it, and hands to fire shots with."""

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
from psiphon_lab.battery import NOBODY
from psiphon_lab.hands import PAUSE, Hands, Outcome, Shot
from psiphon_lab.leaktest.stage import Stage
from psiphon_lab.leaktest.terms import Actor, Mode, Trace
from psiphon_lab.namespace import Host, LabError
from psiphon_lab.own_files import OwnFiles, open_own_files
from psiphon_lab.probe import FIRST_PORT, PORTS

CHURN = frozenset({Mode.RESTARTING, Mode.UPGRADING, Mode.FLUSHED, Mode.TRANSITION})
"""States that are a loop: an attempt is repeated for as long as one turn of it takes."""
CHURN_SECONDS = 0.8
CONTROL_PAUSE = 0.05
"""Without the lock an attempt need not be repeated often to be seen, seconds."""
RUN_SECONDS = 60.0
"""A program that an attack runs ends by then, beside three other worlds on a slow machine."""
DIRECTORIES = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass
class Attempt:
    """A shot that was fired, and what became of it."""

    shot: Shot
    by: Actor
    trace: Trace
    outcome: Outcome | None = None


@dataclass
class Arena:
    """One cell of the matrix while it is played.

    Attributes:
        mode: the state of the machine.
        attack: the attack's id.
        families: the IP versions that it concerns.
        locked: False in the positive control.
        did: what was done, one line each, for the report.
        attempts: the shots so far.
        claimed: networks that the provider claims to be on its link; the core may ask for its server's neighbour there.
        begun: what the attack itself began before the lock.
    """

    stage: Stage
    hands: Hands
    mode: Mode
    attack: str
    families: tuple[int, ...]
    numbers: Iterator[int]
    did: list[str] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    claimed: list[str] = field(default_factory=list)
    cleanups: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _waiting: list[tuple[Attempt, int, float]] = field(default_factory=list)

    @property
    def locked(self) -> bool:
        """Whether there is a lock to be broken."""
        return self.mode is not Mode.CONTROL

    @property
    def churn(self) -> bool:
        """Whether the state is a loop."""
        return self.mode in CHURN

    @property
    def begun(self) -> Any:
        """What `before_lock` returned."""
        return self.stage.begun.get(self.attack)

    @property
    def client(self) -> Host:
        """The machine under test."""
        return self.stage.world.client

    @property
    def lans(self) -> tuple[Lan, ...]:
        """The providers at whose wires attempts are aimed."""
        return (LAN_A, LAN_B) if self.mode in {Mode.CONTROL, Mode.TRANSITION} else (LAN_A,)

    def host_of(self, by: Actor) -> Host:
        """Where somebody stands."""
        world = self.stage.world
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
        **arguments: Any,
    ) -> Shot:
        """Have a shot made; returns at once.

        Args:
            function: makes it; called with the shot and `arguments`, in a process of its own.
            by: who makes it.
            name: the shot's name, once in an attack.
            family: 4 or 6.
            seconds: for how long it is repeated, at the least.
            trace: how its frames are known; without it by token and source port.
            arguments: what JSON can carry.
        """
        number = next(self.numbers)
        shot = Shot(name=name, family=family, token=f"lk{number:08d}", source_port=FIRST_PORT + number % PORTS)
        known = Trace(token=shot.data, source_port=shot.source_port) if trace is None else trace(shot)
        attempt = Attempt(shot, by, known)
        lasting = max(seconds, CHURN_SECONDS) if self.churn else seconds
        uid = NOBODY if by is Actor.USER else 0
        order = self.hands.order(
            self.host_of(by),
            function,
            shot,
            uid=uid,
            seconds=lasting,
            arguments=arguments,
            pause=PAUSE if self.locked else CONTROL_PAUSE,
        )
        self.attempts.append(attempt)
        self._waiting.append((attempt, order, lasting))
        return shot

    def note_shot(self, *, by: Actor, name: str, family: int, trace: Callable[[Shot], Trace]) -> Shot:
        """Count an attempt that a real tool makes; what became of it is told by `tell`."""
        number = next(self.numbers)
        shot = Shot(name=name, family=family, token=f"lk{number:08d}", source_port=FIRST_PORT + number % PORTS)
        self.attempts.append(Attempt(shot, by, trace(shot), Outcome(rounds=1, met={"made": 1})))
        return shot

    def settle(self) -> None:
        """Wait for every shot."""
        for attempt, order, lasting in self._waiting:
            attempt.outcome = self.hands.wait(order, seconds=lasting)
        self._waiting.clear()

    def wait(self, seconds: float) -> None:
        """Let something take its time."""
        time.sleep(seconds)

    def run(
        self,
        *argv: str | Path,
        host: Host | None = None,
        check: bool = False,
        input: str | None = None,
        files: OwnFiles | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program as root, on the client if nothing else is said, and note it for the report.

        files: where it may write. Raises LabError if it fails, if `check`.
        """
        words = [str(word) for word in argv]
        done = (host or self.client).run(
            words if files is None else files.command(words), check=False, input=input, timeout=RUN_SECONDS
        )
        line = shlex.join(str(word) for word in argv)
        where = "" if host is None or host is self.client else f" on {host.name}"
        self.did.append(f"{line}{where}" + (f" (code {done.returncode})" if done.returncode else ""))
        if check and done.returncode:
            last = (done.stderr or done.stdout).strip().splitlines()[-1:]
            raise LabError(f"{line}{where}: code {done.returncode}: {' '.join(last)}")
        return done

    def say(self, text: str) -> None:
        """Note something else that was done."""
        self.did.append(text)

    def undo(self, *argv: str, host: Host | None = None) -> None:
        """Run a program at the end of the cell, whatever came of it."""
        self.cleanups.callback((host or self.client).run, list(argv), check=False)

    def spawn(
        self, argv: Sequence[str], *, host: Host | None = None, files: OwnFiles | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a program that runs until the end of the cell. files: where it may write."""
        words = argv if files is None else files.command(argv)
        child = (host or self.client).spawn(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.did.append(shlex.join(argv) + (f" on {host.name}" if host else ""))
        self.cleanups.callback(_end, child)
        return child

    def open_files(self) -> OwnFiles:
        """A place on the client where a program may write, until the end of the cell."""
        directory = self.scratch_path("own")
        directory.mkdir(parents=True, exist_ok=True)
        return self.cleanups.enter_context(open_own_files(self.client, directory))

    def scratch_path(self, name: str) -> Path:
        """Where `scratch` puts a file."""
        return self.stage.world.directory / "attacks" / self.attack / name

    def scratch(self, name: str, text: str = "", *, mode: int = 0o644) -> Path:
        """A file for a tool, in the world's own directory."""
        path = self.scratch_path(name)
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
    """The programs among these that this machine lacks."""
    return tuple(
        tool
        for tool in tools
        if not (Path(tool).exists() if tool.startswith("/") else shutil.which(tool, path=DIRECTORIES))
    )
