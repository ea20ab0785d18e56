# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A step of the demonstration and its verdict: only innocent frames were outside, and every promise was measured.

Each probe of a step had its positive control in the same run, without the lock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from psiphon_lab import addresses as plan
from psiphon_lab.addresses import Lan
from psiphon_lab.frames import Frame
from psiphon_lab.internet import Internet
from psiphon_lab.judge import Flow, judge_frames
from psiphon_lab.machine import Machine
from psiphon_lab.probe import ICMP, ProbeResult, ProbeSpec, probe_specs
from psiphon_lab.probe_runner import NOBODY, RunningProbes, start_probes, unseen_probes
from psiphon_lab.world import World
from psiphon_vpn.i18n import _

USERS = (("root", 0), ("user", NOBODY))
Probes = tuple[tuple[ProbeSpec, ...], list[RunningProbes]]


class TunnelServer(Protocol):
    """The tunnel's far end: a stand-in, or a real psiphond."""

    @property
    def entry(self) -> str:
        """The server entry, for TargetServerEntry."""

    @property
    def pid(self) -> int:
        """Leader of its process group."""

    def read_flows(self) -> frozenset[Flow]:
        """The tunnel's flows, from the server's side."""

    def keep(self) -> None:
        """Leave it running when the demonstration ends."""


@dataclass(frozen=True)
class Check:
    """One measurement, and whether it is as promised."""

    name: str
    ok: bool
    detail: str = ""


@dataclass
class StepResult:
    """The result of a step.

    Attributes:
        name: its title.
        done: what happened in it.
        id: its name for programs, the same in every language.
        probes: number of probes; outcomes: how many had each outcome.
        frames: number of judged frames; kinds: how many were innocent for each reason; leaks: the others, in words.
        figures: measured times and sizes by name, with the unit in the name.
    """

    name: str
    done: str
    id: str = ""
    checks: list[Check] = field(default_factory=list)
    probes: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    frames: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    leaks: list[str] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def held(self) -> bool:
        """Whether nothing leaked and everything was as promised."""
        return not self.leaks and bool(self.checks) and all(check.ok for check in self.checks)

    def check(self, name: str, ok: bool, detail: str = "") -> None:
        """Add a measurement."""
        self.checks.append(Check(name, ok, detail))


class StepJudge:
    """Probes the machine and judges the frames.

    Args:
        world: where the machine is.
        machine: the machine under test.
        internet: where the tunnel's far ends are.
        announce: called with a sentence before something happens.
    """

    def __init__(self, world: World, machine: Machine, internet: Internet, *, announce: Callable[[str], None]) -> None:
        self._world = world
        self._machine = machine
        self._internet = internet
        self._announce = announce
        self._salt = 0
        self._controls: set[str] = set()
        self._mark: dict[str, int] = {}

    # -- probes and judgement ---------------------------------------------------------------------------------------

    def _start_probes(self, lan: Lan) -> Probes:
        specs: list[ProbeSpec] = []
        running = []
        for label, uid in USERS:
            self._salt += 1
            own = probe_specs(salt=self._salt, interface=lan.interface, label=label)
            specs += own
            running.append(start_probes(self._world.client, own, uid=uid))
        return tuple(specs), running

    @staticmethod
    def _collect(probes: Probes) -> dict[str, ProbeResult]:
        results: dict[str, ProbeResult] = {}
        for running in probes[1]:
            results |= running.collect()
        return results

    def _judge(
        self, result: StepResult, probes: Sequence[Probes], found: Sequence[dict[str, ProbeResult]]
    ) -> list[Frame]:
        """Judge all frames since the step began, and check that each probe had its control."""
        frames = self._world.frames_since(self._mark)
        verdicts = judge_frames(frames, self._internet.judge_by())
        result.frames += len(verdicts)
        result.kinds.update(verdict.innocent for verdict in verdicts if verdict.innocent)
        result.leaks += [f"{verdict.frame.wire}: {verdict.text}" for verdict in verdicts if verdict.is_leak]
        specs = [spec for group in probes for spec in group[0]]
        result.probes += len(specs)
        for results in found:
            result.outcomes.update(item.outcome for item in results.values())
        seen = len(specs) - len(unseen_probes(specs, frames))
        uncontrolled = [spec.id for spec in specs if spec.id not in self._controls]
        result.check(_("no frame of a probe outside"), seen == 0, f"{len(specs)} probes, {seen} seen")
        result.check(_("every other frame is innocent"), not result.leaks, f"{result.frames} frames judged")
        result.check(_("each probe had its positive control"), not uncontrolled, f"{len(self._controls)} controls")
        return frames

    @staticmethod
    def _expect_silence(result: StepResult, found: dict[str, ProbeResult]) -> None:
        answered = [item.id for item in found.values() if item.outcome == "answered"]
        result.check(_("no probe is answered"), not answered, ", ".join(answered[:3]))
        slow = [item.id for item in found.values() if item.outcome == "timeout"]
        result.check(
            _("applications fail at once"), not slow, ", ".join(slow[:3]) or f"within {_slowest(found):.0f} ms"
        )

    def _expect_tunnel(self, result: StepResult, found: dict[str, ProbeResult]) -> None:
        """Check that unbound probes are answered through the tunnel only, and all others refused."""
        regions = set()
        for family in (4, 6):
            pages = [found[f"{label}-tcp-ipv{family}-internet-plain"] for label, _uid in USERS]
            answers = {page.answer or page.outcome for page in pages}
            seen = {self._internet.find_region(answer) for answer in answers}
            regions |= seen
            result.check(
                _("an IPv{family} page sees the server's address").format(family=family),
                len(seen) == 1 and None not in seen,
                ", ".join(sorted(answers)),
            )
        result.check(_("both pages see the same server"), len(regions) == 1, ", ".join(sorted(map(str, regions))))
        names = [found[f"{label}-dns-udp-ipv4-lan-resolver-plain"] for label, _uid in USERS]
        answers = {name.answer or name.outcome for name in names}
        result.check(
            _("a query to the LAN's resolver is answered inside the tunnel"),
            answers == {plan.MARK_TUNNEL},
            ", ".join(answers),
        )
        bound = [item.id for item in found.values() if "-via-" in item.id and item.outcome == "answered"]
        result.check(_("probes bound to the wire are refused"), not bound, ", ".join(bound[:3]))
        pings = [
            item.id for item in found.values() if f"-{ICMP}-" in item.id and item.outcome in {"answered", "timeout"}
        ]
        result.check(_("pings, which the tunnel cannot carry, are refused at once"), not pings, ", ".join(pings[:3]))


def _slowest(found: dict[str, ProbeResult]) -> float:
    return max(item.elapsed_ms for item in found.values())
