# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Plays one task of the matrix: brings a world into a state, and plays attacks in it one after the other.

`matrix.py` runs it in several processes, so that worlds use all processors: `python -m psiphon_lab.leaktest.worker`
reads tasks and writes each cell, a pickled object per line.
"""

from __future__ import annotations

import base64
import contextlib
import os
import pickle
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from psiphon_lab.attacks import list_modules, load_attacks
from psiphon_lab.fork_server import ForkServer
from psiphon_lab.guest.kernels import Kernel
from psiphon_lab.leaktest.cell import Broken, Cell, Missing, play_cell
from psiphon_lab.leaktest.model import Mode
from psiphon_lab.leaktest.player import LocalPlayer, Player
from psiphon_lab.leaktest.testbed import Outside, open_testbed
from psiphon_lab.namespace import LabError
from psiphon_lab.tunnel_ends import RealPrograms


@dataclass(frozen=True, kw_only=True)
class Task:
    """Attacks to play on one machine, in one state after the other.

    Attributes:
        states: each state with its attacks.
        recordings: directory for capture files.
        real: a core and a server instead of the stand-ins.
        kernel: of the virtual machine to play in; None: in namespaces, on this machine's own kernel.
        ask_missing: whether the machine is to say first which mechanisms its kernel lacks.
    """

    states: tuple[tuple[Mode, tuple[str, ...]], ...]
    recordings: str
    real: RealPrograms | None = None
    kernel: Kernel | None = None
    ask_missing: bool = False

    @property
    def pairs(self) -> tuple[tuple[str, Mode], ...]:
        """Attack and state of each cell."""
        return tuple((attack, mode) for mode, attacks in self.states for attack in attacks)


EXIT_LEFT = 4
Told = Cell | Missing | Broken


@contextlib.contextmanager
def open_player(task: Task, fork_server: ForkServer) -> Iterator[tuple[Outside, Player]]:
    """What is outside, and the machine of a task: a testbed in namespaces, or a virtual machine."""
    if task.kernel is None:
        with open_testbed(real=task.real) as testbed:
            yield testbed, LocalPlayer(testbed, fork_server)
    else:
        from psiphon_lab.leaktest.virtual_machine import open_virtual_machine

        with open_virtual_machine(task.kernel, fork_server) as opened:
            yield opened


def run_task(task: Task, fork_server: ForkServer, tell: Callable[[Told], None]) -> None:
    """Play a task. tell: called with each cell as soon as it is known.

    A virtual machine that breaks after it has played something is replaced by another one, which plays the rest.
    """
    left = dict.fromkeys(task.pairs)
    asked = not task.ask_missing

    def note(told: Told) -> None:
        if isinstance(told, Cell):
            left.pop((told.attack, told.mode), None)
        tell(told)

    while left:
        before = len(left)
        try:
            with open_player(task, fork_server) as (outside, player):
                if not asked:
                    tell(Missing(player.find_missing()))
                    asked = True
                for mode, attacks in task.states:
                    if chosen := [name for name in attacks if (name, mode) in left]:
                        play_state(outside, player, chosen, mode, recordings=Path(task.recordings), tell=note)
        except LabError as error:
            if task.kernel is not None:
                tell(Broken(str(error)))
                if len(left) < before:
                    continue  # another machine plays the rest
            for identifier, mode in list(left):
                reason = str(error).splitlines()[0][:300]
                note(Cell(attack=identifier, mode=mode, seconds=0.0, error=reason))


def play_state(
    outside: Outside,
    player: Player,
    names: Sequence[str],
    mode: Mode,
    *,
    recordings: Path,
    tell: Callable[[Told], None],
) -> None:
    """Play attacks in a state of a machine. tell: called with each cell as soon as it is known. Raises LabError."""
    known = {attack.id: attack for attack in load_attacks()}
    # Attacks that began something before the lock come first, because a keepalive may end it.
    attacks = sorted((known[name] for name in names), key=lambda attack: (attack.before_lock is None, attack.id))
    player.begin(mode, [attack.id for attack in attacks])
    # Frames from before the lock must not arrive after the mark: an unlocked client reports groups by MLDv2.
    outside.record_since(outside.world.mark())
    mark = outside.world.mark()
    try:
        player.enter()
        for attack in attacks:
            recording = recordings / f"{attack.id}-{mode}.pcapng"
            play = partial(play_cell, outside, player, attack, mode)
            cell, mark = play(mark=mark, recording=recording)
            if mode is Mode.CONTROL and len(cell.seen) < len(cell.tried):
                # The effect of an earlier attack on the link may last a moment. Once seen is enough.
                again, mark = play(mark=mark, recording=recording.with_suffix(".again.pcapng"))
                cell = again if len(again.seen) > len(cell.seen) else cell
            elif cell.state_lost and not cell.judgement.leaks:
                # For example because the service itself retried. Try once more; a leak remains a leak.
                cell, mark = play(mark=mark, recording=recording)
            tell(cell)
    finally:
        with contextlib.suppress(LabError):
            player.leave()


def encode(value: object) -> bytes:
    """A value as one line, for a process that the laboratory itself has started."""
    return base64.b64encode(pickle.dumps(value)) + b"\n"


def decode(line: bytes) -> object:
    """The value in a line of `encode`."""
    return pickle.loads(base64.b64decode(line))  # noqa: S301 - from our own child


def main() -> int:
    """Play tasks until standard input ends; if that is during a task, who wanted it has ended, and so does this."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    orders: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    busy = threading.Event()

    def read() -> None:
        for line in sys.stdin.buffer:
            busy.set()
            orders.put(line)
        if busy.is_set():
            os._exit(EXIT_LEFT)  # worlds and machines end with this process
        orders.put(b"")

    threading.Thread(target=read, name="orders", daemon=True).start()
    with ForkServer(list_modules()) as fork_server:
        while line := orders.get():
            # Fields and not an object: this process runs the module as its program, so the caller's class differs.
            fields = decode(line)
            assert isinstance(fields, dict)
            run_task(Task(**fields), fork_server, lambda told: _write(encode(told)))
            busy.clear()
            _write(b"done\n")
    return 0


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]


if __name__ == "__main__":
    sys.exit(main())
