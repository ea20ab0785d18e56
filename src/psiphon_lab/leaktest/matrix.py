# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The matrix: plays the attacks in the states, with worlds in parallel, and concludes the verdicts."""

from __future__ import annotations

import os
import platform
import queue
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Container, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from psiphon_lab.guest.kernels import Kernel
from psiphon_lab.launch import clean_environment
from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.cell import Broken, Cell, Missing, finish
from psiphon_lab.leaktest.model import Mode
from psiphon_lab.leaktest.results_file import ResultsFile, Subject
from psiphon_lab.leaktest.verdict import Kind
from psiphon_lab.leaktest.worker import Task, Told, decode, encode
from psiphon_lab.revision import read_commit
from psiphon_lab.tunnel_ends import RealPrograms
from psiphon_vpn import __version__

LONGEST_TASK = 12
"""Attacks in one task. A state is split into several tasks, so that at the end no long one keeps running alone."""
NAMESPACES = "namespaces"
SLOW = (Mode.UPGRADING, Mode.RESTARTING, Mode.TRANSITION, Mode.FLUSHED)
TASK_SECONDS = 600.0
EMULATED_SECONDS = 6 * 3600.0
"""The same in an emulated machine: it is slow, and says itself when it hangs."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """The result of a run.

    Attributes:
        cells: every pair of attack and state, as `cell.finish` returns it.
        controls: the same attacks without the lock.
        seconds: how long the run took.
        machine: where it was played; NAMESPACES, or the name of a virtual machine.
        kernel: its kernel, as in `uname -r`.
        missing: mechanisms that this kernel lacks.
        commits: the project's commits that played the cells.
        seen_at: when it ended, Unix time.
    """

    attacks: tuple[Attack, ...]
    modes: tuple[Mode, ...]
    cells: tuple[dict[str, Any], ...]
    controls: tuple[dict[str, Any], ...]
    seconds: float
    machine: str = NAMESPACES
    kernel: str = field(default_factory=platform.release)
    missing: tuple[str, ...] = ()
    commits: tuple[str, ...] = ()
    seen_at: float = field(default_factory=time.time)

    def count(self) -> Counter[str]:
        """The number of cells by verdict; attacks out of reach count separately."""
        out_of_reach = {attack.id for attack in self.attacks if attack.out_of_reach}
        return Counter(
            "out-of-reach"
            if cell["attack"] in out_of_reach and cell["verdict"] != Kind.NOT_APPLICABLE
            else str(cell["verdict"])
            for cell in self.cells
        )

    @property
    def held(self) -> bool:
        """Whether every applicable pair was tried and held."""
        counts = self.count()
        return bool(counts[Kind.HELD]) and not counts[Kind.LEAK] and not counts[Kind.INCONCLUSIVE]

    @property
    def frames(self) -> int:
        """The number of frames judged in locked states."""
        return sum(int(cell["frames"]) for cell in self.cells)

    def describe(self) -> dict[str, Any]:
        """The result as one object for JSON."""
        return {
            "held": self.held,
            "seconds": round(self.seconds, 1),
            "counts": dict(self.count()),
            "frames_judged": self.frames,
            "machine": self.machine,
            "kernel": self.kernel,
            "missing": list(self.missing),
            "version": __version__,
            "commits": list(self.commits),
            "attacks": [
                {"id": attack.id, "name": attack.name, "reference": attack.reference, "summary": attack.summary}
                for attack in self.attacks
            ],
            "states": [str(mode) for mode in self.modes],
            "cells": list(self.cells),
            "controls": list(self.controls),
        }


def plan_tasks(
    attacks: Sequence[Attack],
    modes: Sequence[Mode],
    recordings: Path,
    real: RealPrograms | None = None,
    *,
    kernel: Kernel | None = None,
    machines: int = 1,
    done: Container[tuple[str, Mode]] = (),
) -> list[Task]:
    """The tasks, the slowest first; the control is always among them. done: pairs that were played before.

    In namespaces a task has one state. A virtual machine starts slowly, so each of the `machines` plays all states: the
    control first, the slowest last.
    """
    ordered = sorted([Mode.CONTROL, *modes], key=lambda mode: SLOW.index(mode) if mode in SLOW else len(SLOW))
    wanted = [
        (attack.id, mode)
        for mode in ordered
        for attack in attacks
        if mode not in attack.not_applicable and (attack.id, mode) not in done
    ]

    def plan(states: Sequence[Mode], parts: int) -> list[Task]:
        names = list(dict.fromkeys(name for name, mode in wanted if mode in states))
        tasks = []
        for part in range(parts):
            # In turn, because neighbours in the list take similar time and should not end up in the same task.
            own = names[part::parts]
            played = ((mode, tuple(name for name, of in wanted if of is mode and name in own)) for mode in states)
            cells = tuple((mode, found) for mode, found in played if found)
            if cells:
                tasks.append(Task(states=cells, recordings=str(recordings), real=real, kernel=kernel))
        return tasks

    if kernel is not None:
        return plan([*(mode for mode in ordered if mode not in SLOW), *(mode for mode in SLOW[::-1] if mode in modes)],
                    machines)  # fmt: skip
    return [task for mode in ordered for task in plan([mode], -(-len(attacks) // LONGEST_TASK))]


class _Worker:
    """A process that plays tasks; one world at a time."""

    def __init__(self) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-m", "psiphon_lab.leaktest.worker"],
            env=clean_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

    def play(self, task: Task, take: Callable[[Told], None]) -> None:
        """Play a task to its end. Cells that are missing are reported as failed."""
        left = set(task.pairs)
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        watchdog = threading.Timer(TASK_SECONDS if task.kernel is None else EMULATED_SECONDS, self._child.kill)
        watchdog.start()
        try:
            self._child.stdin.write(encode(vars(task)))
            self._child.stdin.flush()
            while (line := self._child.stdout.readline()) and line != b"done\n":
                told = decode(line)
                assert isinstance(told, Told)
                if isinstance(told, Cell):
                    left.discard((told.attack, told.mode))
                take(told)
        except OSError:
            pass  # it ended: the missing cells are reported below
        finally:
            watchdog.cancel()
        for name, mode in sorted(left):
            take(Cell(attack=name, mode=mode, seconds=0.0, error="the process that played it ended"))

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
    """The number of worlds in parallel: more than processors, because much of the time is waiting."""
    return (os.cpu_count() or 1) + 2


def run_matrix(
    attacks: Sequence[Attack],
    modes: Sequence[Mode],
    *,
    jobs: int,
    recordings: Path,
    on_cell: Callable[[Cell], None] = lambda _: None,
    on_broken: Callable[[str], None] = lambda _: None,
    real: RealPrograms | None = None,
    kernel: Kernel | None = None,
    results: ResultsFile | None = None,
) -> Result:
    """Play the matrix.

    Args:
        attacks: the attacks to try.
        modes: the states to try them in.
        jobs: number of worlds in parallel.
        recordings: an existing directory for capture files.
        on_cell: called with every cell as it comes, the verdict of which waits for the end.
        on_broken: called with what a virtual machine that broke said.
        real: a core and a server instead of the stand-ins.
        kernel: of the virtual machines to play in; None: in namespaces.
        results: has the cells that were played before, and gets the others.
    """
    begin = time.monotonic()
    waiting: queue.SimpleQueue[Task] = queue.SimpleQueue()
    done = () if results is None else results.done
    tasks = plan_tasks(attacks, modes, recordings, real, kernel=kernel, machines=jobs, done=done)
    if results is not None and results.tested.missing is None and tasks:
        tasks[0] = replace(tasks[0], ask_missing=True)
    for task in tasks:
        waiting.put(task)
    cells: list[Cell] = [] if results is None else list(results.cells)
    lock = threading.Lock()

    def note(told: Told) -> None:
        with lock:
            if isinstance(told, Broken):
                on_broken(told.text)
                return
            if isinstance(told, Missing):
                assert results is not None
                results.note_missing(told.names)
                return
            if results is not None:
                results.add(told)
            cells.append(told)
            on_cell(told)

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

    with ThreadPoolExecutor(max_workers=jobs, thread_name_prefix="worker") as pool:
        working = [pool.submit(work) for _number in range(min(jobs, len(tasks)))]
    for one in working:
        one.result()  # raises what ended it: its cells would be called unproven, and nobody would know why
    tested = None if results is None else results.tested
    commits = (read_commit(),) if results is None else results.commits
    return conclude_all(attacks, modes, cells, seconds=time.monotonic() - begin, tested=tested, commits=commits)


def conclude_all(
    attacks: Sequence[Attack],
    modes: Sequence[Mode],
    cells: Sequence[Cell],
    *,
    seconds: float,
    tested: Subject | None = None,
    commits: tuple[str, ...] = (),
) -> Result:
    """Combine cells and their controls. A pair that was not played is inconclusive.

    tested: the machine; None: namespaces. commits: the project's, that played the cells.
    """
    missing = (tested.missing or ()) if tested is not None else ()
    played = {(cell.attack, cell.mode): cell for cell in cells}
    done = []
    for attack in attacks:
        control = played.get((attack.id, Mode.CONTROL))
        for mode in modes:
            if mode in attack.not_applicable:
                cell = Cell(attack=attack.id, mode=mode, seconds=0.0, not_applicable=attack.not_applicable[mode])
            else:
                cell = played.get((attack.id, mode)) or Cell(
                    attack=attack.id, mode=mode, seconds=0.0, error="it was not played"
                )
            done.append(finish(cell, attack, control, missing=missing))
    controls = [
        finish(found, attack, found)
        for attack in attacks
        if (found := played.get((attack.id, Mode.CONTROL))) is not None
    ]
    return Result(
        attacks=tuple(attacks),
        modes=tuple(modes),
        cells=tuple(done),
        controls=tuple(controls),
        seconds=seconds,
        missing=missing,
        machine=NAMESPACES if tested is None else tested.machine,
        kernel=platform.release() if tested is None else tested.kernel,
        commits=commits,
    )
