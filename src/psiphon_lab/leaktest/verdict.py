# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What a cell of the matrix proves. Pure: takes a recording, the attempts and the control, returns a verdict.

held          every frame outside was innocent, none belonged to an attempt, and without the lock all attempts were seen
leak          at least one frame was not innocent, or belonged to an attempt
weaker        the same, but this kernel lacks the mechanism that would have stopped each of these frames; never held
inconclusive  nothing leaked, but part of the proof is missing; it never counts as held
not-applicable      the pair says nothing, and the attack says why
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from psiphon_lab.addresses import LAN_A, LAN_B
from psiphon_lab.judge import Evidence, judge_frames
from psiphon_lab.leaktest.model import EGRESS, Trace
from psiphon_lab.pcapng import Recording

OWN_MACS = {lan.mac.replace(":", "") for lan in (LAN_A, LAN_B)}


class Kind(enum.StrEnum):
    """The kind of verdict on a cell."""

    HELD = "held"
    LEAK = "leak"
    WEAKER = "weaker"
    INCONCLUSIVE = "inconclusive"
    NOT_APPLICABLE = "not-applicable"


@dataclass(frozen=True, kw_only=True)
class Tried:
    """One attempt.

    error: why it could not be made, in which case it proves nothing. needs: the mechanism of the kernel without which
    nothing stops it (`linux/features.py`), or "".
    """

    name: str
    by: str
    family: int
    trace: Trace
    results: Mapping[str, int] = field(default_factory=dict)
    rounds: int = 0
    error: str = ""
    needs: str = ""


@dataclass(frozen=True, kw_only=True)
class Leak:
    """A frame outside that is not innocent. attempt: the attempt to which it belongs, or ""."""

    time: float
    wire: str
    text: str
    hex: str
    family: int
    attempt: str


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What a recording shows. kinds: number of innocent frames by reason. seen: number of frames by attempt."""

    frames: int
    kinds: Mapping[str, int]
    leaks: tuple[Leak, ...]
    seen: Mapping[str, int]


def judge_recording(recording: Recording, tried: Sequence[Tried], evidence: Evidence) -> Judgement:
    """Judge every frame from the client."""
    verdicts = judge_frames(recording.frames, evidence)
    seen: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    leaks = []
    for verdict in verdicts:
        # One report of groups may be of several attempts.
        owners = [attempt for attempt in tried if attempt.trace.matches(verdict.frame)]
        seen.update(attempt.name for attempt in owners)
        owner = owners[0] if owners else None
        if verdict.innocent is not None and owner is None:
            kinds[verdict.innocent] += 1
            continue
        data = verdict.frame.data
        leaks.append(
            Leak(
                time=verdict.frame.time,
                wire=verdict.frame.wire,
                text=verdict.text,
                hex=data[:128].hex(),
                family=owner.family if owner else 6 if data[12:14] == b"\x86\xdd" else 4,
                attempt=owner.name if owner else "",
            )
        )
    return Judgement(frames=len(verdicts), kinds=dict(kinds), leaks=tuple(leaks), seen=dict(seen))


@dataclass(frozen=True, kw_only=True)
class Conclusion:
    """A verdict and its reason. families: the verdict for each IP version."""

    kind: Kind
    reason: str = ""
    families: Mapping[int, Kind] = field(default_factory=dict)


def _is_of_child(leak: Leak) -> bool:
    """Whether a frame without an attempt has another hardware address than the machine's own cards.

    A macvlan or a bridged machine sends ARP and neighbour discovery of its own, which only the egress hook sees.
    """
    return not leak.attempt and leak.hex[12:24] not in OWN_MACS


def conclude(
    judgement: Judgement,
    tried: Sequence[Tried],
    *,
    complete: bool,
    state_lost: str,
    error: str,
    controlled: Iterable[str],
    families: Iterable[int],
    needs: Iterable[str] = (),
    missing: Iterable[str] = (),
) -> Conclusion:
    """The verdict of a cell.

    Args:
        judgement: on its recording.
        tried: its attempts.
        complete: whether the recording is without losses.
        state_lost: why the state was not held, or "".
        error: why the attack could not be carried out, or "".
        controlled: names of the attempts that were seen without the lock, in the same run.
        families: the IP versions of the attack.
        needs: mechanisms of the kernel without which attack or state may leak.
        missing: those that this kernel lacks.
    """
    lacking = set(missing)
    open_to = {attempt.name for attempt in tried if attempt.needs in lacking}
    children = EGRESS in lacking
    excused = bool(lacking.intersection(needs))
    unexpected = [
        leak
        for leak in judgement.leaks
        if not excused and leak.attempt not in open_to and not (children and _is_of_child(leak))
    ]
    known = set(controlled)
    doubts: list[tuple[int, str]] = []
    if not complete:
        doubts.append((0, "the capture lost frames"))
    if error:
        doubts.append((0, error))
    if state_lost:
        doubts.append((0, f"the state was not held: {state_lost}"))
    if not tried:
        doubts.append((0, "nothing was attempted"))
    for attempt in tried:
        if attempt.error:
            doubts.append((attempt.family, f"{attempt.name} could not be made: {attempt.error}"))
        elif attempt.name not in known:
            doubts.append((attempt.family, f"{attempt.name} was not seen without the lock"))
    wanted = tuple(families)
    doubts += [
        (family, f"nothing was attempted with IPv{family}")
        for family in wanted
        if tried and not any(attempt.family == family for attempt in tried)
    ]

    def decide(family: int) -> Kind:
        if any(family in {0, leak.family} for leak in unexpected):
            return Kind.LEAK
        if any(family in {0, leak.family} for leak in judgement.leaks):
            return Kind.WEAKER
        if any(family == 0 or which in {0, family} for which, _ in doubts):
            return Kind.INCONCLUSIVE
        return Kind.HELD

    kind = decide(0)
    reason = ""
    if kind is Kind.LEAK:
        reason = f"{len(unexpected)} frames: {unexpected[0].text}"
    elif kind is Kind.WEAKER:
        names = sorted(lacking.intersection([*needs, *(attempt.needs for attempt in tried)]))
        reason = f"this kernel lacks {', '.join(names)}; {len(judgement.leaks)} frames: {judgement.leaks[0].text}"
    elif kind is Kind.INCONCLUSIVE:
        reason = "; ".join(text for _, text in doubts[:3])
    return Conclusion(kind=kind, reason=reason, families={family: decide(family) for family in wanted})
