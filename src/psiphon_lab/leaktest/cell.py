# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""One cell of the matrix: an attack in a state, captured outside, and judged from the capture file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from psiphon_lab.addresses import CORE_PORTS
from psiphon_lab.judge import world_evidence
from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.model import NEEDED_IN_STATE, Mode
from psiphon_lab.leaktest.player import Player
from psiphon_lab.leaktest.testbed import Mark, Outside
from psiphon_lab.leaktest.verdict import Judgement, Kind, Tried, conclude, judge_recording
from psiphon_lab.pcapng import read_recording, write_recording

MOST_FRAMES = 20_000
SHOWN_LEAKS = 40


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What happened in a cell, and what was seen. The verdict needs the control: see `finish`."""

    attack: str
    mode: Mode
    seconds: float
    actions: tuple[str, ...] = ()
    tried: tuple[Tried, ...] = ()
    judgement: Judgement = field(default_factory=lambda: Judgement(frames=0, kinds={}, leaks=(), seen={}))
    complete: bool = False
    state_lost: str = ""
    error: str = ""
    layers: dict[str, int] = field(default_factory=dict)
    recording: str = ""
    not_applicable: str = ""

    @property
    def seen(self) -> frozenset[str]:
        """Names of the shots with a frame outside."""
        return frozenset(self.judgement.seen)


@dataclass(frozen=True)
class Missing:
    """The mechanisms that a machine's kernel lacks."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class Broken:
    """A machine broke. text: why, and the end of its console."""

    text: str


def play_cell(
    outside: Outside, player: Player, attack: Attack, mode: Mode, *, mark: Mark, recording: Path
) -> tuple[Cell, Mark]:
    """Play one cell.

    Args:
        outside: the captures and the server.
        player: the machine, which is in the state.
        attack: what is tried.
        mode: the state's name.
        mark: where the previous cell ended, so that no frame between two cells is missed.
        recording: the file for its frames.

    Returns:
        The cell, and the mark where it ended.
    """
    played = player.play(attack.id)
    frames, dropped = outside.record_since(mark)
    ended = outside.world.mark()
    if len(frames) > MOST_FRAMES:
        dropped = dict.fromkeys(dropped, -1)
    write_recording(recording, frames[:MOST_FRAMES], dropped)
    record = read_recording(recording)
    evidence = world_evidence(outside.server.read_flows(), core_ports=CORE_PORTS, claimed=played.claimed)
    return (
        Cell(
            attack=attack.id,
            mode=mode,
            seconds=played.seconds,
            actions=played.actions,
            tried=played.tried,
            judgement=judge_recording(record, played.tried, evidence),
            complete=record.complete,
            state_lost=played.state_lost,
            error=played.error,
            layers=played.layers,
            recording=recording.name,
        ),
        ended,
    )


def finish(cell: Cell, attack: Attack, control: Cell | None, *, missing: Sequence[str] = ()) -> dict[str, Any]:
    """A cell with its verdict, for the reports.

    control: the same attack without the lock, in the same run. missing: mechanisms that the kernel lacks.
    """
    controlled = control.seen if control is not None else frozenset()
    if cell.not_applicable:
        verdict: dict[str, Any] = {"kind": Kind.NOT_APPLICABLE, "reason": cell.not_applicable, "families": {}}
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
                needs=(*attack.needs, NEEDED_IN_STATE.get(cell.mode, "")),
                missing=missing,
            )
        )
    return {
        "attack": cell.attack,
        "state": cell.mode,
        "verdict": verdict["kind"],
        "reason": verdict["reason"],
        "families": {f"ipv{family}": kind for family, kind in verdict["families"].items()},
        "seconds": cell.seconds,
        "actions": list(cell.actions),
        "attempts": [
            {
                "name": item.name,
                "by": item.by,
                "family": item.family,
                "rounds": item.rounds,
                "results": dict(item.results),
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
