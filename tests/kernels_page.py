# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes docs/kernels.md from what runs of `leaktest --machine` showed. A test holds the page to docs/kernels.json.

`python -m tests.kernels_page FILE...` first puts the results of runs (the files of `--continue`) into
docs/kernels.json, each cell in place of an earlier one of the same kernel. Without files it only writes the page.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from psiphon_lab.attacks import load_attacks
from psiphon_lab.leaktest.matrix import conclude_all
from psiphon_lab.leaktest.model import EGRESS, MODES, OWNER
from psiphon_lab.leaktest.results_file import ResultsFile, read_results
from psiphon_lab.leaktest.verdict import Kind
from psiphon_lab.revision import describe_commits

DOCS: Final = Path(__file__).parents[1] / "docs"
PAGE: Final = DOCS / "kernels.md"
DATA: Final = DOCS / "kernels.json"
HEAD: Final = """# Kernels

What the leak test showed on other kernels than the developers' own: `sudo psiphon-vpn leaktest --machine vm:NAME`.
This page is made from runs (`docs/kernels.json`, by `python -m tests.kernels_page`). What was not run is not in it; the
column "of" has the cells that there are.

Each kernel is Debian's own, unchanged, in a virtual machine (QEMU, emulated). The programs in it (nft, iproute2,
Python) are those of the machine that ran the test: this is **that kernel under these programs**, not that release of
Debian. The captures are at the far ends of the machine's cables, outside it, so its kernel cannot hide a frame. The
tunnel program and its server are stand-ins. No such machine shows a real Wi-Fi or modem chip, its firmware, Fedora
with SELinux, or Ubuntu.

A cell is one [attack](leaks.md) in one state. *Held*: every frame outside was innocent, and the same attempts were
seen outside without the lock, on the same kernel. *Weaker*: frames left, and the kernel lacks the mechanism that would
have stopped every one of them; the service does not promise that there, and it never counts as held. *Leak*: anything
else that left. *Unproven*: part of the proof is missing, for example a program that was not installed. *Out of reach*:
no rule can stop the attack on any kernel; [leaks.md](leaks.md) says why.

"""
LAYERS: Final = (
    (None, "base table", "every kernel with nftables"),
    (OWNER, "wire guard that no other program can remove", "Linux 5.12"),
    (EGRESS, "egress guard and frame guard: raw frames, children of cards, bridged machines", "Linux 5.16"),
    ("traffic_filters", "traffic control: what is redirected onto a card", "`cls_bpf`, `clsact`"),
)
"""The layers by the mechanism that each needs, and what brings it."""


def summarise(results: ResultsFile) -> dict[str, Any]:
    """The part of a run's results that the page needs."""
    tested = results.tested
    whole = conclude_all(load_attacks(), MODES, results.cells, seconds=0.0, tested=tested)
    played = {(cell.attack, str(cell.mode)) for cell in results.cells}
    cells = [cell for cell in whole.cells if (cell["attack"], cell["state"]) in played]
    beyond = {attack.id for attack in load_attacks() if attack.out_of_reach}
    shown: dict[str, dict[str, str]] = {}
    for cell in cells:
        kind = "out-of-reach" if cell["attack"] in beyond else str(cell["verdict"])
        shown.setdefault(cell["attack"], {})[cell["state"]] = kind
    by_pair = {f"{cell['attack']} {cell['state']}": cell for cell in cells}
    return {
        "machine": tested.machine,
        "kernel": tested.kernel,
        "version": tested.version,
        "commits": list(results.commits),
        "missing": None if tested.missing is None else list(tested.missing),
        "cells": shown,
        "frames": {pair: cell["frames"] for pair, cell in by_pair.items() if cell["frames"]},
        "stopped": {
            pair: ", ".join(sorted({name.partition(":")[0] for name in cell["stopped_by"]}))
            for pair, cell in by_pair.items()
            if cell["verdict"] == Kind.HELD and cell["stopped_by"]
        },
        "reasons": {
            pair: cell["reason"]
            for pair, cell in by_pair.items()
            if cell["verdict"] in {Kind.LEAK, Kind.WEAKER, Kind.INCONCLUSIVE} and cell["attack"] not in beyond
        },
    }


def _list_pairs(machine: Mapping[str, Any]) -> set[str]:
    return {f"{attack} {state}" for attack, states in machine["cells"].items() for state in states}


def add_up(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Two summaries of one machine: the cells of both, the new ones in place of old ones.

    Those of another kernel, version, or set of mechanisms are not kept: they say nothing about this one.
    """
    if any(old[name] != new[name] for name in ("kernel", "version", "missing")):
        return dict(new)
    replaced = _list_pairs(new)
    if _list_pairs(old) <= replaced:
        return dict(new)
    cells = {attack: dict(states) for attack, states in old["cells"].items()}
    for attack, states in new["cells"].items():
        cells.setdefault(attack, {}).update(states)
    return {
        **new,
        **({"incomplete": True} if old.get("incomplete") else {}),
        "commits": list(dict.fromkeys([*old["commits"], *new["commits"]])),
        "cells": cells,
        **{
            name: {**{pair: it for pair, it in old[name].items() if pair not in replaced}, **new[name]}
            for name in ("frames", "stopped", "reasons")
        },
    }


def count(machine: Mapping[str, Any]) -> Counter[str]:
    """A machine's cells by verdict."""
    return Counter(kind for states in machine["cells"].values() for kind in states.values())


def _least(machine: Mapping[str, Any]) -> str:
    """Before a number. Older results kept frames and layers of all cells as sums only: those of some are not known."""
    return "at least " if machine.get("incomplete") else ""


def _list_layers(machines: Iterable[Mapping[str, Any]]) -> list[str]:
    rows = ["| Layer | Needs |", "| --- | --- |"]
    for machine in machines:
        rows[0] += f" {machine['kernel']} |"
        rows[1] += " --- |"
    for mechanism, name, needs in LAYERS:
        row = f"| {name} | {needs} |"
        for machine in machines:
            if machine["missing"] is None:
                row += " not asked |"
            else:
                row += " missing |" if mechanism in machine["missing"] else " there |"
        rows.append(row)
    return rows


def _list_cells(machine: Mapping[str, Any]) -> list[str]:
    signs = {"held": "held", "weaker": "**weaker**", "leak": "**LEAK**", "inconclusive": "unproven"}
    states = [str(mode) for mode in MODES if any(str(mode) in cells for cells in machine["cells"].values())]
    rows = [f"| | {' | '.join(states)} |", f"| --- |{' --- |' * len(states)}"]
    for attack in load_attacks():
        if (cells := machine["cells"].get(attack.id)) is not None:
            row = " | ".join(signs.get(cells.get(state, ""), cells.get(state, "")) for state in states)
            rows.append(f"| {attack.id}: {attack.name} | {row} |")
    return rows


def render(data: Mapping[str, Any]) -> str:
    """The page."""
    machines = data["machines"]
    lines = ["## What each kernel has", "", *_list_layers(machines), ""]
    lines += [
        "## What was played",
        "",
        "| Machine | Kernel | Cells | of | Held | Weaker | Leak | Unproven | Out of reach | Frames |",
    ]
    lines += ["| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"]
    whole = sum(len(MODES) - len(attack.not_applicable) for attack in load_attacks())
    for machine in machines:
        kinds = count(machine)
        numbers = [
            sum(kinds.values()),
            whole,
            *(kinds[kind] for kind in ("held", "weaker", "leak", "inconclusive", "out-of-reach")),
        ]
        frames = f"{_least(machine)}{sum(machine['frames'].values())}"
        shown = " | ".join(str(number) for number in (*numbers, frames))
        lines.append(f"| `{machine['machine']}` | {machine['kernel']} | {shown} |")
    for machine in machines:
        lines += ["", f"## Linux {machine['kernel']}", "", *_list_cells(machine), ""]
        lines += [describe_commits(machine["commits"]), ""]
        stopped = Counter(layer for layers in machine["stopped"].values() for layer in layers.split(", "))
        if stopped:
            reported = "; ".join(f"{name}: {_least(machine)}{number}" for name, number in sorted(stopped.items()))
            lines.append(f"Cells in which each layer refused packets (by its own counters): {reported}.")
        lines += [f"- {pair}: {reason}" for pair, reason in machine["reasons"].items()]
    for name, why in data["not_served"].items():
        lines += ["", f"`{name}` was tried and cannot be had: {why}"]
    return HEAD + "\n".join(lines).rstrip() + "\n"


def sort_key(kernel: str) -> list[int]:
    """Kernels in the order of their versions. kernel: as in `uname -r`."""
    return [int(number) for number in re.findall(r"\d+", kernel)[:3]]


def main(paths: Iterable[str]) -> None:
    """Merge new results, and write the page."""
    data = json.loads(DATA.read_text(encoding="utf-8"))
    known = {machine["machine"]: machine for machine in data["machines"]}
    for path in paths:
        summary = summarise(read_results(Path(path)))
        old = known.get(summary["machine"], summary)
        known[summary["machine"]] = add_up(old, summary)
    data["machines"] = sorted(known.values(), key=lambda machine: sort_key(machine["kernel"]))
    DATA.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(render(data), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
