"""One task of the matrix: a world, brought into a state, and attacks played in it one after the other.

Run in processes of their own by `matrix.py`: `python -m psiphon_lab.leaktest.work` reads tasks and writes what
came of each cell, each a pickled object in a line, so that worlds stand side by side on all processors.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import os
import pickle
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from psiphon_lab.attacks import list_modules, load_attacks
from psiphon_lab.hands import Hands
from psiphon_lab.leaktest.arena import Arena
from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.cell import Cell, play_cell
from psiphon_lab.leaktest.stage import Stage, open_stage
from psiphon_lab.leaktest.states import STATES
from psiphon_lab.leaktest.terms import Mode
from psiphon_lab.namespace import LabError
from psiphon_lab.tunnel_ends import RealPrograms


@dataclass(frozen=True, kw_only=True)
class Task:
    """Attacks to be played in one state.

    Attributes:
        recordings: the directory that capture files go into.
        real: the core and the server that are used instead of the stand-ins.
    """

    mode: Mode
    attacks: tuple[str, ...]
    recordings: str
    real: RealPrograms | None = None


def _begin(stage: Stage, hands: Hands, attacks: Sequence[Attack], mode: Mode, numbers: itertools.count[int]) -> None:
    for attack in attacks:
        if attack.before_lock is not None:
            arena = Arena(
                stage=stage, hands=hands, mode=mode, attack=attack.id, families=attack.families, numbers=numbers
            )
            stage.begun[attack.id] = attack.before_lock(arena)


def run_task(task: Task, hands: Hands, tell: Callable[[Cell], None]) -> None:
    """Play a task; each cell is told as soon as it is known."""
    known = {attack.id: attack for attack in load_attacks()}
    # What was begun before the lock is tried first: a keepalive may end it meanwhile.
    attacks = sorted((known[name] for name in task.attacks), key=lambda attack: (attack.before_lock is None, attack.id))
    left = {attack.id for attack in attacks}
    try:
        with open_stage(real=task.real) as stage:
            numbers = itertools.count(1)
            held = STATES[task.mode](stage)
            _begin(stage, hands, attacks, task.mode, numbers)
            if task.mode is not Mode.CONTROL:
                stage.lock()
            # What was sent before the lock must not arrive after the mark: an unlocked client reports groups by MLDv2.
            stage.record_since(stage.world.mark())
            mark = stage.world.mark()
            try:
                held.enter()
                for attack in attacks:
                    recording = Path(task.recordings) / f"{attack.id}-{task.mode}.pcapng"
                    play = partial(play_cell, stage, hands, attack, held, task.mode, numbers=numbers)
                    cell, mark = play(mark=mark, recording=recording)
                    if task.mode is Mode.CONTROL and len(cell.seen) < len(cell.tried):
                        # What an attack before did to the link may outlast it by a moment. Seen once is seen.
                        again, mark = play(mark=mark, recording=recording.with_suffix(".again.pcapng"))
                        cell = again if len(again.seen) > len(cell.seen) else cell
                    elif cell.state_lost and not cell.judgement.leaks:
                        # A retry of the service's own, say. It is reached anew and tried once more; a leak stays one.
                        cell, mark = play(mark=mark, recording=recording)
                    left.discard(attack.id)
                    tell(cell)
            finally:
                with contextlib.suppress(LabError):
                    held.leave()
    except LabError as error:
        for identifier in sorted(left):
            reason = str(error).splitlines()[0][:300]
            tell(Cell(attack=identifier, mode=task.mode, seconds=0.0, error=reason))


def encode(value: object) -> bytes:
    """A value as one line. Only between a laboratory and the processes that it started itself."""
    return base64.b64encode(pickle.dumps(value)) + b"\n"


def decode(line: bytes) -> object:
    """The opposite of `encode`."""
    return pickle.loads(base64.b64decode(line))  # noqa: S301 - from a child of ours


def main() -> int:
    """Play tasks until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Hands(list_modules()) as hands:
        for line in sys.stdin.buffer:
            # Fields, not an object: this process runs the module as its program, so the caller's class is another one.
            fields = decode(line)
            assert isinstance(fields, dict)
            run_task(Task(**fields), hands, lambda cell: _write(encode(cell)))
            _write(b"done\n")
    return 0


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]


if __name__ == "__main__":
    sys.exit(main())
