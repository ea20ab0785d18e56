# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A file with the cells that were played, so that a slow run can be interrupted, continued and added up.

One JSON object per line (jsonlines.org): first what was tested, then a cell each, as soon as it is known. A later cell
replaces an earlier one of the same attack and state. The verdicts are made from all of them, and each still needs its
positive control in the same file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from psiphon_lab.leaktest.cell import Cell
from psiphon_lab.leaktest.model import Mode, Trace
from psiphon_lab.leaktest.verdict import Judgement, Leak, Tried
from psiphon_lab.namespace import LabError
from psiphon_lab.revision import UNKNOWN


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What was tested.

    Attributes:
        machine: its name, such as "vm:debian-12".
        kernel: its kernel, as in `uname -r`.
        version: the service's version.
        commit: the project's commit. Results of several are added up, unlike those of several versions.
        missing: mechanisms that the kernel lacks (`linux/features.py`); None: not known yet.
    """

    machine: str
    kernel: str
    version: str
    commit: str = UNKNOWN
    missing: tuple[str, ...] | None = None


class ResultsFile:
    """The file. path: it is created with the first line.

    Raises:
        LabError: it is about another machine, kernel or version, or cannot be read.
    """

    def __init__(self, path: Path, tested: Subject) -> None:
        self._path = path
        self.tested = tested
        self._cells: dict[tuple[str, Mode], Cell] = {}
        self._commits: dict[tuple[str, Mode], str] = {}
        self._commit = tested.commit
        """Of the cells that follow in the file."""
        if path.exists():
            self._read()
        else:
            self._append(_describe(tested))

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The cells so far."""
        return tuple(self._cells.values())

    @property
    def commits(self) -> tuple[str, ...]:
        """The commits that played the cells which count, in the order of the file."""
        return tuple(dict.fromkeys(self._commits.values()))

    @property
    def done(self) -> frozenset[tuple[str, Mode]]:
        """The pairs that need not be played again. A control must have seen all that is tried in any state."""
        tried: dict[str, set[str]] = {}
        for cell in self._cells.values():
            tried.setdefault(cell.attack, set()).update(item.name for item in cell.tried)
        return frozenset(
            pair
            for pair, cell in self._cells.items()
            if is_whole(cell) and (cell.mode is not Mode.CONTROL or tried[cell.attack] <= cell.seen)
        )

    def add(self, cell: Cell) -> None:
        """Write a cell."""
        if self._commit != self.tested.commit:
            self._commit = self.tested.commit
            self._append(_describe(self.tested))
        self._keep(cell)
        self._append({"cell": dump_cell(cell)})

    def _keep(self, cell: Cell) -> None:
        pair = cell.attack, cell.mode
        self._cells[pair] = cell
        self._commits.pop(pair, None)  # in the order of the cells that count
        self._commits[pair] = self._commit

    def note_missing(self, missing: Iterable[str]) -> None:
        """Write which mechanisms the kernel lacks."""
        self.tested = Subject(**{**asdict(self.tested), "missing": tuple(missing)})
        self._commit = self.tested.commit
        self._append(_describe(self.tested))

    def _read(self) -> None:
        data = self._path.read_bytes()
        whole = data.rpartition(b"\n")[0]
        if len(whole) + 1 < len(data):
            os.truncate(self._path, len(whole) + 1)  # a run that was killed while it wrote a line
        try:
            for line in whole.splitlines():
                self._take(json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            raise LabError(f"{self._path} cannot be read: {error}") from error

    def _take(self, read: Mapping[str, Any]) -> None:
        if "cell" in read:
            self._keep(load_cell(read["cell"]))
            return
        found = read["tested"]
        for name in ("machine", "kernel", "version"):
            if found[name] != (wanted := getattr(self.tested, name)):
                raise LabError(f"{self._path} has results of {name} {found[name]}, not {wanted}")
        self._commit = str(found.get("commit", UNKNOWN))
        if found["missing"] is not None:
            self.tested = Subject(**{**asdict(self.tested), "missing": tuple(found["missing"])})

    def _append(self, value: Mapping[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(value) + "\n")


def read_results(path: Path) -> ResultsFile:
    """The results in a file, whatever was tested. Raises LabError."""
    try:
        first = json.loads(path.read_text(encoding="utf-8").partition("\n")[0])["tested"]
        tested = Subject(**{**first, "missing": None})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LabError(f"{path} has no results: {error}") from error
    return ResultsFile(path, tested)


def is_whole(cell: Cell) -> bool:
    """Whether playing it again would show nothing that it does not show."""
    if cell.error or cell.state_lost or not cell.complete or any(item.error for item in cell.tried):
        return False
    return cell.mode is not Mode.CONTROL or len(cell.seen) == len(cell.tried)


def _describe(tested: Subject) -> dict[str, Any]:
    return {"tested": asdict(tested)}


def dump_cell(cell: Cell) -> dict[str, Any]:
    """A cell as JSON, without what only the judge of its frames needs."""
    fields = asdict(cell)
    for item in fields["tried"]:
        del item["trace"]
    return fields


def load_cell(read: Mapping[str, Any]) -> Cell:
    """A cell from JSON. Raises KeyError, TypeError, ValueError."""
    judged = read["judgement"]
    judgement = Judgement(
        frames=judged["frames"],
        kinds=judged["kinds"],
        leaks=tuple(Leak(**leak) for leak in judged["leaks"]),
        seen=judged["seen"],
    )
    return Cell(
        **{
            **read,
            "mode": Mode(read["mode"]),
            "actions": tuple(read["actions"]),
            "tried": tuple(Tried(**item, trace=Trace()) for item in read["tried"]),
            "judgement": judgement,
        }
    )
