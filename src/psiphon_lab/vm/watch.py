# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Watches a virtual computer while storms rage in it: every frame is judged, from the firmware to the end."""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from psiphon_lab import addresses as plan
from psiphon_lab.booted.booted_host import PYTHON, SOURCE
from psiphon_lab.frames import Frame, decode_packet
from psiphon_lab.judge import judge_frames, world_evidence
from psiphon_lab.namespace import LabError
from psiphon_lab.probe_runner import NOBODY
from psiphon_lab.server_process import ServerProcess
from psiphon_lab.vm.storm import ROOT, TCP, USER, Shot, list_shots
from psiphon_lab.vm.virtual_computer import VirtualComputer
from psiphon_lab.waiting import wait_until

STORM_UNIT: Final = "psiphon-lab-storm@{label}.service"
_UNIT: Final = f"""\
[Unit]
Description=A storm of the laboratory's, as %i
DefaultDependencies=no
After=systemd-remount-fs.service

[Service]
Environment=PYTHONPATH={SOURCE}
ExecStart={PYTHON} -S -s -B -m psiphon_lab.vm.storm %i
Restart=always
StandardOutput=null
"""
_AS_USER: Final = f"[Service]\nUser={NOBODY}\nGroup={NOBODY}\n"
EARLY_UNIT: Final = "psiphon-lab-early.service"
_EARLY: Final = """\
[Unit]
Description=What the laboratory sends first
DefaultDependencies=no

[Service]
ExecStart=/bin/bash -c 'for _ in {{1..100}}; do echo "{token}" >/dev/udp/{target}/7; sleep 0.3; done'
"""
"""A shell starts sooner than Python: this begins before the storms."""
SHOTS: Final = (*list_shots(ROOT), *list_shots(USER))


@dataclass
class Seen:
    """What was seen outside in a time.

    Attributes:
        frames: number of frames from the computer; kinds: how many were innocent for each reason.
        leaks: all other frames, in words.
        first: the moment of the first frame, Unix time, or None.
        shots: tokens of the storms' shots that were recognised.
    """

    frames: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    leaks: list[str] = field(default_factory=list)
    first: float | None = None
    shots: set[str] = field(default_factory=set)


def recognise(frames: Iterable[Frame]) -> set[str]:
    """The tokens of all shots that are among frames."""
    ports = {shot.source_port: shot.token for shot in SHOTS if shot.kind == TCP}
    tokens = {shot.token.encode(): shot.token for shot in SHOTS if shot.kind != TCP}
    found: set[str] = set()
    for frame in frames:
        packet = decode_packet(frame.data[14:]) if len(frame.data) > 34 else None
        if packet is not None and packet.protocol == 6 and packet.source_port in ports:
            found.add(ports[packet.source_port])
        begin = frame.data.find(b"storm-")
        if begin >= 0:
            token = frame.data[begin:].partition(b";")[0] + b";"
            found |= {tokens[token]} if token in tokens else set()
    return found


def prepare_storms(computer: VirtualComputer) -> None:
    """Have storms begin as early as possible at every boot. Before `become_virtual`."""
    units = computer.files / "etc/systemd/system"
    (units / STORM_UNIT.format(label="")).write_text(_UNIT)
    more = units / f"{STORM_UNIT.format(label=USER)}.d"
    more.mkdir()
    (more / "user.conf").write_text(_AS_USER)
    shot = list_shots(ROOT)[0]  # to the internet by UDP
    (units / EARLY_UNIT).write_text(_EARLY.format(token=shot.token, target=shot.target))
    wants = units / "sysinit.target.wants"
    wants.mkdir(exist_ok=True)
    (wants / EARLY_UNIT).symlink_to(f"../{EARLY_UNIT}")
    for label in (ROOT, USER):
        (wants / STORM_UNIT.format(label=label)).symlink_to(f"../{STORM_UNIT.format(label='')}")


class Watch:
    """Frames since a moment, judged by what the tunnel's server has recorded.

    Args:
        computer: the computer.
        server: the tunnel's server.
    """

    def __init__(self, computer: VirtualComputer, server: ServerProcess) -> None:
        self._computer = computer
        self._server = server
        self._mark = computer.world.mark()
        self._from = 0.0

    def leave_out(self, *, before: float) -> None:
        """Begin later: at a moment, Unix time."""
        self._from = before

    def frames(self) -> list[Frame]:
        """The frames from the computer so far."""
        return [frame for frame in self._computer.world.frames_since(self._mark) if frame.time >= self._from]

    def look(self, *, since: float = 0.0, until: float = math.inf) -> Seen:
        """Judge everything so far, or what came from one moment on and before another, Unix time."""
        frames = [frame for frame in self.frames() if since <= frame.time < until]
        found = Seen(frames=len(frames), shots=recognise(frames))
        found.first = min((frame.time for frame in frames), default=None)
        # Only the stand-in core has these source ports. A server cannot record a connection that a reset cuts short.
        evidence = world_evidence(self._server.read_flows(), core_ports=plan.CORE_PORTS)
        for verdict in judge_frames(frames, evidence):
            if verdict.innocent is None:
                found.leaks.append(f"{verdict.frame.wire}: {verdict.text}")
            else:
                found.kinds[verdict.innocent] += 1
        return found

    def count_until_core(self, *, since: float) -> tuple[float | None, int]:
        """The moment of the first frame after a moment, and the number of frames from then on to the core's first."""
        late = sorted((frame for frame in self.frames() if frame.time > since), key=lambda frame: frame.time)
        number = 0
        for frame in late:
            packet = decode_packet(frame.data[14:])
            if packet is not None and packet.source_port in plan.CORE_PORTS:
                break
            number += 1
        return (late[0].time if late else None), number

    def wait_shots(self, wanted: Iterable[Shot], *, seconds: float) -> None:
        """Wait until all these shots were recognised outside. Raises LabError with those that were not."""
        tokens = {shot.token for shot in wanted}

        def missing() -> set[str]:
            return tokens - recognise(self.frames())

        try:
            wait_until(lambda: not missing(), "shots", timeout=seconds, pause=0.5)
        except LabError as error:
            raise LabError(f"not seen outside: {sorted(missing())}") from error


class Listener:
    """A storm that is started now, and tells when answers from the internet begin and cease.

    Attributes:
        moments: (whether there are answers, Unix time of the laboratory).
    """

    def __init__(self, computer: VirtualComputer) -> None:
        argv = ["env", f"PYTHONPATH={SOURCE}", PYTHON, "-S", "-s", "-B", "-m", "psiphon_lab.vm.storm", USER]
        self._child = computer.inside.spawn(argv, uid=NOBODY, gid=NOBODY, stdout=subprocess.PIPE)
        self.moments: list[tuple[bool, float]] = []
        self._reader = threading.Thread(target=self._read, name="listener", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            self.moments.append((json.loads(line)["answers"], time.time()))

    def wait_answers(self, *, since: float, seconds: float) -> float:
        """When answers first came after a moment. Raises LabError."""

        def find() -> list[float]:
            return [moment for answers, moment in self.moments if answers and moment > since]

        wait_until(lambda: bool(find()), "answers from the internet", timeout=seconds, pause=0.05)
        return find()[0]

    def end(self) -> None:
        """End it."""
        self._child.kill()
        self._child.wait()
        self._reader.join()
        assert self._child.stdout is not None
        self._child.stdout.close()


@contextlib.contextmanager
def listening(computer: VirtualComputer) -> Iterator[Listener]:
    """A listener while the block runs."""
    made = Listener(computer)
    try:
        yield made
    finally:
        made.end()
