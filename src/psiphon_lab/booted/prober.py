# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Probes a booted computer continuously, through boots and shutdowns."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from dataclasses import dataclass, field

from psiphon_lab.addresses import LAN_A
from psiphon_lab.booted.computer import Computer
from psiphon_lab.judge import Evidence, judge_frames
from psiphon_lab.namespace import LabError
from psiphon_lab.probe import ProbeResult, ProbeSpec, probe_specs
from psiphon_lab.probe_runner import NOBODY, RunningProbes, start_probes, unseen_probes

USERS = (("root", 0), ("user", NOBODY))
LIMIT = 0.8
_PAUSE = 0.3


@dataclass
class Watched:
    """The result of a scenario.

    Attributes:
        probes: number of probes, as root and as a user; outcomes: how many had each outcome, if they finished.
        frames: number of frames from the computer; kinds: how many were innocent for each reason.
        leaks: all other frames, in words.
        seen: ids of probes that were seen on a wire.
        uncontrolled: ids of probes without a positive control.
    """

    probes: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    frames: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    leaks: list[str] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    uncontrolled: list[str] = field(default_factory=list)

    def copy_from(self, other: Watched) -> None:
        """Copy another result into this one."""
        self.__dict__.update(other.__dict__)


class Prober:
    """Probes a computer from the beginning of its block to the end, and judges every frame of that time.

    Args:
        computer: the computer, which may be off at times.
        salts: numbers that make each probe of the world unique; all probers of a world share them.
    """

    def __init__(self, computer: Computer, salts: Counter[str]) -> None:
        self._computer = computer
        self._salts = salts
        self.specs: list[ProbeSpec] = []
        self._results: list[ProbeResult] = []
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._mark = computer.world.mark()

    def __enter__(self) -> Prober:
        self._mark = self._computer.world.mark()
        self._thread = threading.Thread(target=self._probe_on, name="prober", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        assert self._thread is not None
        self._thread.join()

    def _probe_on(self) -> None:
        while not self._stopping.is_set():
            with contextlib.suppress(LabError, OSError):
                self.probe()
            # A pause, so that the probes do not keep the computer busy.
            self._stopping.wait(_PAUSE + LIMIT)

    def probe(self) -> dict[str, ProbeResult]:
        """Run all probes once, as root and as a user in parallel. Raises LabError if the computer is or goes off."""
        if not self._computer.inside.can_run_modules:
            raise LabError("the computer is shutting down")
        running: list[RunningProbes] = []
        for label, uid in USERS:
            self._salts["salt"] += 1
            specs = probe_specs(salt=self._salts["salt"], interface=LAN_A.interface, label=label)
            running.append(start_probes(self._computer.inside, specs, uid=uid, limit=LIMIT))
            self.specs += specs
        results: dict[str, ProbeResult] = {}
        failed: list[LabError] = []
        for probes in running:
            try:
                results |= probes.collect()
            except LabError as error:
                failed.append(error)
        if failed:
            raise failed[0]
        self._results += results.values()
        return results

    def judge(self, evidence: Evidence) -> Watched:
        """Judge every frame since the block began."""
        frames = self._computer.world.frames_since(self._mark)
        watched = Watched(probes=len(self.specs), frames=len(frames))
        watched.outcomes.update(result.outcome for result in self._results)
        for verdict in judge_frames(frames, evidence):
            if verdict.innocent is None:
                watched.leaks.append(f"{verdict.frame.wire}: {verdict.text}")
            else:
                watched.kinds[verdict.innocent] += 1
        unseen = {spec.token for spec in unseen_probes(self.specs, frames)}
        watched.seen = [spec.id for spec in self.specs if spec.token not in unseen]
        return watched
