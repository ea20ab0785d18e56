"""One cell of the matrix: an attack in a state, captured outside and judged from the file that the capture became."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from psiphon_lab.addresses import CORE_PORTS
from psiphon_lab.hands import Hands
from psiphon_lab.judge import world_evidence
from psiphon_lab.leaktest.arena import Arena, missing_tools
from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.held import Held
from psiphon_lab.leaktest.layers import ROUTING, read_counters, subtract
from psiphon_lab.leaktest.stage import Mark, Stage
from psiphon_lab.leaktest.terms import Mode
from psiphon_lab.leaktest.verdict import Judgement, Kind, Tried, conclude, judge_recording
from psiphon_lab.namespace import LabError
from psiphon_lab.pcapng import read_recording, write_recording

MOST_FRAMES = 20_000
SHOWN_LEAKS = 40


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What was done in a cell and what it showed. The verdict waits for the control: see `finish`."""

    attack: str
    mode: Mode
    seconds: float
    did: tuple[str, ...] = ()
    tried: tuple[Tried, ...] = ()
    judgement: Judgement = field(default_factory=lambda: Judgement(frames=0, kinds={}, leaks=(), seen={}))
    complete: bool = False
    state_lost: str = ""
    error: str = ""
    layers: dict[str, int] = field(default_factory=dict)
    recording: str = ""
    no_sense: str = ""

    @property
    def seen(self) -> frozenset[str]:
        """Names of the attempts of which a frame was outside."""
        return frozenset(self.judgement.seen)


def play_cell(
    stage: Stage,
    hands: Hands,
    attack: Attack,
    held: Held,
    mode: Mode,
    *,
    numbers: Iterator[int],
    mark: Mark,
    recording: Path,
) -> tuple[Cell, Mark]:
    """Play one cell.

    Args:
        stage: where.
        hands: what fires the shots.
        attack: what is tried.
        held: the state, entered already.
        mode: its name.
        numbers: for shots.
        mark: where the one before ended: no frame between two cells is left out.
        recording: the file that its frames go into.

    Returns:
        The cell, and the mark at which it ended.
    """
    begin = time.monotonic()
    if lacking := missing_tools(attack.tools):
        error = f"this machine lacks {', '.join(lacking)}"
        return Cell(attack=attack.id, mode=mode, seconds=0.0, error=error), mark
    arena = Arena(stage=stage, hands=hands, mode=mode, attack=attack.id, families=attack.families, numbers=numbers)
    state_lost = error = ""
    layers: dict[str, int] = {}
    try:
        held.repair_network()
        held.mend()
        before = read_counters(stage.world.client)
        try:
            attack.run(arena)
            arena.settle()
            layers = subtract(before, read_counters(stage.world.client))
        finally:
            with contextlib.suppress(LabError):
                arena.settle()
            arena.cleanups.close()
            if not attack.disturbs:
                state_lost = held.look()
            held.mend()
    except Exception as problem:  # noqa: BLE001 - whatever it was: the attack was not carried out, and proves nothing
        error = (str(problem) or type(problem).__name__).splitlines()[0][:300]
    frames, dropped = stage.record_since(mark)
    ended = stage.world.mark()
    if len(frames) > MOST_FRAMES:
        dropped = dict.fromkeys(dropped, -1)
    write_recording(recording, frames[:MOST_FRAMES], dropped)
    record = read_recording(recording)
    tried = tuple(
        Tried(
            name=attempt.shot.name,
            by=attempt.by,
            family=attempt.shot.family,
            trace=attempt.trace,
            met=attempt.outcome.met if attempt.outcome else {},
            rounds=attempt.outcome.rounds if attempt.outcome else 0,
            error=attempt.outcome.error if attempt.outcome else "no result",
        )
        for attempt in arena.attempts
    )
    routed = sum(count for item in tried for met, count in item.met.items() if met.startswith("unreachable"))
    if routed and mode is not Mode.CONTROL:
        layers[ROUTING] = routed
    evidence = world_evidence(stage.server.read_flows(), core_ports=CORE_PORTS, claimed=arena.claimed)
    return (
        Cell(
            attack=attack.id,
            mode=mode,
            seconds=round(time.monotonic() - begin, 2),
            did=tuple(arena.did),
            tried=tried,
            judgement=judge_recording(record, tried, evidence),
            complete=record.complete,
            state_lost=state_lost,
            error=error,
            layers=layers,
            recording=recording.name,
        ),
        ended,
    )


def finish(cell: Cell, attack: Attack, control: Cell | None) -> dict[str, Any]:
    """A cell with its verdict, as the reports have it. control: the same attack without the lock, in the same run."""
    controlled = control.seen if control is not None else frozenset()
    if cell.no_sense:
        verdict: dict[str, Any] = {"kind": Kind.NO_SENSE, "reason": cell.no_sense, "families": {}}
    else:
        verdict = asdict(
            conclude(
                cell.judgement,
                cell.tried,
                complete=cell.complete,
                state_lost=cell.state_lost,
                error=cell.error,
                controlled=controlled,
                families=attack.families,
            )
        )
    return {
        "attack": cell.attack,
        "state": cell.mode,
        "verdict": verdict["kind"],
        "reason": verdict["reason"],
        "families": {f"ipv{family}": kind for family, kind in verdict["families"].items()},
        "seconds": cell.seconds,
        "did": list(cell.did),
        "attempts": [
            {
                "name": item.name,
                "by": item.by,
                "family": item.family,
                "rounds": item.rounds,
                "met": dict(item.met),
                "error": item.error,
                "seen": cell.judgement.seen.get(item.name, 0),
                "control_seen": control.judgement.seen.get(item.name, 0) if control is not None else 0,
            }
            for item in cell.tried
        ],
        "frames": cell.judgement.frames,
        "innocent": dict(cell.judgement.kinds),
        "leaks": [asdict(leak) for leak in cell.judgement.leaks[:SHOWN_LEAKS]],
        "leak_count": len(cell.judgement.leaks),
        "stopped_by": dict(sorted(cell.layers.items(), key=lambda item: -item[1])),
        "recording": cell.recording,
    }
