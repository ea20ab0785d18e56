"""Attempts to get out of a booted computer, without a pause, through boots, shutdowns and everything between."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from dataclasses import dataclass, field

from psiphon_lab.addresses import LAN_A
from psiphon_lab.battery import NOBODY, RunningProbes, start_probes, unseen_probes
from psiphon_lab.booted.computer import Computer
from psiphon_lab.judge import Flow, judge_frames, world_evidence
from psiphon_lab.namespace import LabError
from psiphon_lab.probe import ProbeResult, ProbeSpec, probe_specs

USERS = (("root", 0), ("user", NOBODY))
LIMIT = 0.8
_PAUSE = 0.3


@dataclass
class Watched:
    """What came of a scenario.

    Attributes:
        probes: attempts that were made, by root and by a user; outcomes: what became of those that came to an end.
        frames: how many frames came out of the computer; kinds: what the innocent ones were.
        leaks: all other frames, in words. seen: ids of probes that a wire showed.
        uncontrolled: ids of probes that had no positive control.
    """

    probes: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    frames: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    leaks: list[str] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    uncontrolled: list[str] = field(default_factory=list)

    def take(self, other: Watched) -> None:
        """Become what another is."""
        self.__dict__.update(other.__dict__)


class Prober:
    """Probes a computer from the begin of its block to the end, and judges every frame of that time.

    Args:
        computer: may be off at times.
        salts: numbers that make probes different from all others of the world: shared by all of the world's probers.
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
            # A pause, so that the computer is not busy with nothing else.
            self._stopping.wait(_PAUSE + LIMIT)

    def probe(self) -> dict[str, ProbeResult]:
        """One battery as root and as a user, side by side. Raises LabError if the computer is off, or goes off."""
        if not self._computer.inside.can_run_modules:
            raise LabError("the computer is too far down to run anything")
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

    def judge(self, flows: frozenset[Flow]) -> Watched:
        """Judge everything since the block began. flows: what the tunnel server has recorded."""
        frames = self._computer.world.frames_since(self._mark)
        found = Watched(probes=len(self.specs), frames=len(frames))
        found.outcomes.update(result.outcome for result in self._results)
        for verdict in judge_frames(frames, world_evidence(flows)):
            if verdict.innocent is None:
                found.leaks.append(f"{verdict.frame.wire}: {verdict.text}")
            else:
                found.kinds[verdict.innocent] += 1
        unseen = {spec.token for spec in unseen_probes(self.specs, frames)}
        found.seen = [spec.id for spec in self.specs if spec.token not in unseen]
        return found
