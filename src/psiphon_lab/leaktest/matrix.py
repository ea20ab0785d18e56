"""The matrix: which attacks in which states, worlds side by side, and the verdicts at the end."""

from __future__ import annotations

import os
import platform
import queue
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from psiphon_lab.launch import clean_environment
from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.cell import Cell, finish
from psiphon_lab.leaktest.terms import Mode
from psiphon_lab.leaktest.verdict import Kind
from psiphon_lab.leaktest.work import Task, decode, encode
from psiphon_lab.tunnel_ends import RealPrograms

LONGEST_TASK = 12
"""Attacks in one task: a state is split into several worlds, so that none keeps the others waiting at the end."""
SLOW = (Mode.UPGRADING, Mode.RESTARTING, Mode.FLUSHED, Mode.TRANSITION)
TASK_SECONDS = 600.0


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a run gave.

    Attributes:
        cells: every pair of attack and state, as `cell.finish` describes it.
        controls: the same attacks without the lock.
        seconds: how long it took.
    """

    attacks: tuple[Attack, ...]
    modes: tuple[Mode, ...]
    cells: tuple[dict[str, Any], ...]
    controls: tuple[dict[str, Any], ...]
    seconds: float
    seen_at: float = field(default_factory=time.time)

    def count(self) -> Counter[str]:
        """Cells by verdict; those that are out of reach apart."""
        beyond = {attack.id for attack in self.attacks if attack.beyond}
        return Counter(
            "out-of-reach" if cell["attack"] in beyond and cell["verdict"] != Kind.NO_SENSE else str(cell["verdict"])
            for cell in self.cells
        )

    @property
    def held(self) -> bool:
        """Whether every pair that makes sense was tried and held."""
        counts = self.count()
        return bool(counts[Kind.HELD]) and not counts[Kind.LEAK] and not counts[Kind.INCONCLUSIVE]

    @property
    def frames(self) -> int:
        """Frames judged in locked states."""
        return sum(int(cell["frames"]) for cell in self.cells)

    def describe(self) -> dict[str, Any]:
        """The whole as one object for JSON."""
        return {
            "held": self.held,
            "seconds": round(self.seconds, 1),
            "counts": dict(self.count()),
            "frames_judged": self.frames,
            "kernel": platform.release(),
            "attacks": [
                {"id": attack.id, "name": attack.name, "reference": attack.reference, "plain": attack.plain}
                for attack in self.attacks
            ],
            "states": [str(mode) for mode in self.modes],
            "cells": list(self.cells),
            "controls": list(self.controls),
        }


def plan_tasks(
    attacks: Sequence[Attack], modes: Sequence[Mode], recordings: Path, real: RealPrograms | None = None
) -> list[Task]:
    """The tasks, the longest first; the control is always one of them."""
    tasks: list[Task] = []
    for mode in sorted([Mode.CONTROL, *modes], key=lambda mode: mode not in SLOW):
        names = [attack.id for attack in attacks if mode not in attack.senseless]
        parts = max(1, -(-len(names) // LONGEST_TASK))
        # Dealt out in turn, so that neighbours in the corpus, which are alike in cost, do not meet in one task.
        tasks += [
            Task(mode=mode, attacks=tuple(names[part::parts]), recordings=str(recordings), real=real)
            for part in range(parts)
            if names[part::parts]
        ]
    return tasks


class _Worker:
    """A process that plays tasks; one world at a time."""

    def __init__(self) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-m", "psiphon_lab.leaktest.work"],
            env=clean_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

    def play(self, task: Task, tell: Callable[[Cell], None]) -> None:
        """Play a task to its end. Cells that do not come are told as failed."""
        left = set(task.attacks)
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        watchdog = threading.Timer(TASK_SECONDS, self._child.kill)
        watchdog.start()
        try:
            self._child.stdin.write(encode(vars(task)))
            self._child.stdin.flush()
            while (line := self._child.stdout.readline()) and line != b"done\n":
                cell = decode(line)
                assert isinstance(cell, Cell)
                left.discard(cell.attack)
                tell(cell)
        except OSError:
            pass  # it ended: what is left is told below
        finally:
            watchdog.cancel()
        for name in sorted(left):
            tell(Cell(attack=name, mode=task.mode, seconds=0.0, error="the process that played it ended"))

    def end(self) -> None:
        """End the process."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.close()
        try:
            self._child.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._child.stdout.close()

    @property
    def alive(self) -> bool:
        """Whether it can take another task."""
        return self._child.poll() is None


def default_jobs() -> int:
    """Worlds side by side: much of the time is waiting, so more than there are processors."""
    return (os.cpu_count() or 1) + 2


def run_matrix(
    attacks: Sequence[Attack],
    modes: Sequence[Mode],
    *,
    jobs: int,
    recordings: Path,
    tell: Callable[[Cell], None] = lambda _: None,
    real: RealPrograms | None = None,
) -> Result:
    """Play the matrix.

    Args:
        attacks: what is tried.
        modes: in which states.
        jobs: how many worlds stand side by side.
        recordings: the directory for capture files; it exists.
        tell: called with every cell as it comes, the verdict of which waits for the end.
        real: a core and a server instead of the stand-ins.
    """
    begin = time.monotonic()
    waiting: queue.SimpleQueue[Task] = queue.SimpleQueue()
    tasks = plan_tasks(attacks, modes, recordings, real)
    for task in tasks:
        waiting.put(task)
    cells: list[Cell] = []
    lock = threading.Lock()

    def note(cell: Cell) -> None:
        with lock:
            cells.append(cell)
            tell(cell)

    def work() -> None:
        worker = _Worker()
        try:
            while True:
                try:
                    task = waiting.get_nowait()
                except queue.Empty:
                    return
                if not worker.alive:
                    worker.end()
                    worker = _Worker()
                worker.play(task, note)
        finally:
            worker.end()

    threads = [threading.Thread(target=work, name=f"worker-{number}") for number in range(min(jobs, len(tasks)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return conclude_all(attacks, modes, cells, seconds=time.monotonic() - begin)


def conclude_all(attacks: Sequence[Attack], modes: Sequence[Mode], cells: Sequence[Cell], *, seconds: float) -> Result:
    """Put cells and their controls together. A pair that was not played counts as inconclusive."""
    played = {(cell.attack, cell.mode): cell for cell in cells}
    done = []
    for attack in attacks:
        control = played.get((attack.id, Mode.CONTROL))
        for mode in modes:
            if mode in attack.senseless:
                cell = Cell(attack=attack.id, mode=mode, seconds=0.0, no_sense=attack.senseless[mode])
            else:
                cell = played.get((attack.id, mode)) or Cell(
                    attack=attack.id, mode=mode, seconds=0.0, error="it was not played"
                )
            done.append(finish(cell, attack, control))
    controls = [
        finish(found, attack, found)
        for attack in attacks
        if (found := played.get((attack.id, Mode.CONTROL))) is not None
    ]
    return Result(
        attacks=tuple(attacks), modes=tuple(modes), cells=tuple(done), controls=tuple(controls), seconds=seconds
    )
