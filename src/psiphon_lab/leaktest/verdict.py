"""What a cell of the matrix proves. Pure: a recording, what was attempted, and the control; a verdict comes out.

held          every frame outside was innocent, none was of an attempt, and every attempt showed without the lock
leak          at least one frame was not innocent, or was of an attempt
inconclusive  nothing leaked, but something is missing that would make this a proof; it never counts as held
no-sense      the pair says nothing, and the attack says why
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from psiphon_lab.judge import Evidence, judge_frames
from psiphon_lab.leaktest.terms import Trace
from psiphon_lab.pcapng import Recording


class Kind(enum.StrEnum):
    """What came of a cell."""

    HELD = "held"
    LEAK = "leak"
    INCONCLUSIVE = "inconclusive"
    NO_SENSE = "no-sense"


@dataclass(frozen=True, kw_only=True)
class Tried:
    """One attempt. error: why it could not be made; then it proves nothing."""

    name: str
    by: str
    family: int
    trace: Trace
    met: Mapping[str, int] = field(default_factory=dict)
    rounds: int = 0
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class Leak:
    """A frame that should not be outside. attempt: the one that it belongs to, "" if to none."""

    time: float
    wire: str
    text: str
    hex: str
    family: int
    attempt: str


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What a recording shows. kinds: innocent frames by kind. seen: frames of each attempt by its name."""

    frames: int
    kinds: Mapping[str, int]
    leaks: tuple[Leak, ...]
    seen: Mapping[str, int]


def judge_recording(recording: Recording, tried: Sequence[Tried], evidence: Evidence) -> Judgement:
    """Judge every frame that came out of the client."""
    verdicts = judge_frames(recording.frames, evidence)
    seen: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    leaks = []
    for verdict in verdicts:
        owner = next((attempt for attempt in tried if attempt.trace.matches(verdict.frame)), None)
        if owner is not None:
            seen[owner.name] += 1
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
    """A verdict and why. families: the same for each IP version alone."""

    kind: Kind
    reason: str = ""
    families: Mapping[int, Kind] = field(default_factory=dict)


def conclude(
    judgement: Judgement,
    tried: Sequence[Tried],
    *,
    complete: bool,
    state_lost: str,
    error: str,
    controlled: Iterable[str],
    families: Iterable[int],
) -> Conclusion:
    """The verdict of a cell.

    Args:
        judgement: of its recording.
        tried: its attempts.
        complete: whether the recording lost nothing.
        state_lost: why the state was not held, "" if it was.
        error: why the attack could not be carried out, "" if it could.
        controlled: names of the attempts that were seen without the lock, in the same run.
        families: the IP versions of the attack.
    """
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
        if any(family in {0, leak.family} for leak in judgement.leaks):
            return Kind.LEAK
        if any(family == 0 or which in {0, family} for which, _ in doubts):
            return Kind.INCONCLUSIVE
        return Kind.HELD

    kind = decide(0)
    reason = ""
    if kind is Kind.LEAK:
        reason = f"{len(judgement.leaks)} frames: {judgement.leaks[0].text}"
    elif kind is Kind.INCONCLUSIVE:
        reason = "; ".join(text for _, text in doubts[:3])
    return Conclusion(kind=kind, reason=reason, families={family: decide(family) for family in wanted})
