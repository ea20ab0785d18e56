# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The command `psiphon-vpn leaktest`: the matrix, with a live view, and its report files."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from string import ascii_lowercase

import click

from psiphon_lab.attacks import load_attacks
from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.cell import Cell
from psiphon_lab.leaktest.html_report import SIGNS, render_page
from psiphon_lab.leaktest.junit import render_junit
from psiphon_lab.leaktest.machines import ALL, PREFIX, Chosen, choose_machines
from psiphon_lab.leaktest.matrix import NAMESPACES, Result, default_jobs, plan_tasks, run_matrix
from psiphon_lab.leaktest.model import MODES, Mode
from psiphon_lab.leaktest.verdict import Kind
from psiphon_lab.namespace import LabError
from psiphon_lab.revision import describe_mixture
from psiphon_lab.tunnel_ends import RealPrograms
from psiphon_vpn.errors import UserError
from psiphon_vpn.i18n import _


@dataclass(frozen=True, kw_only=True)
class Where:
    """Virtual machines to play in; see `machines.choose_machines`."""

    machine: str | None = None
    image: Path | None = None
    modules: Path | None = None
    results: Path | None = None


EXIT_LEAK, EXIT_UNPROVEN = 1, 3
LINE_EVERY = 10
"""Cells for each line about the progress, where nobody sees a bar."""
COLORS = {
    Kind.HELD: "green",
    Kind.LEAK: "bold red",
    Kind.INCONCLUSIVE: "yellow",
    Kind.WEAKER: "magenta",
    Kind.NOT_APPLICABLE: "dim",
}


def choose_attacks(names: Sequence[str]) -> tuple[Attack, ...]:
    """The attacks with these ids; all if there are none. An id without its last letter means all with that number.

    Raises:
        UserError: there is no such attack.
    """
    known = load_attacks()
    if not names:
        return known
    wanted = {name.lower() for name in names}
    chosen = [attack for attack in known if wanted & {attack.id.lower(), attack.id.lower().rstrip(ascii_lowercase)}]
    for name in names:
        if not any(attack.id.lower() == name.lower() for attack in known):
            raise UserError(
                _("The leak test cannot start"),
                _("there is no attack {name}").format(name=name),
                _("The attacks are: {names}.").format(names=", ".join(attack.id for attack in known)),
            )
    return tuple(chosen)


def choose_modes(names: Sequence[str]) -> tuple[Mode, ...]:
    """The states with these names; all if there are none.

    Raises:
        UserError: there is no such state.
    """
    known = {str(mode): mode for mode in MODES}
    for name in names:
        if name not in known:
            raise UserError(
                _("The leak test cannot start"),
                _("there is no state {name}").format(name=name),
                _("The states are: {names}.").format(names=", ".join(known)),
            )
    return tuple(mode for name, mode in known.items() if not names or name in names)


def run_leaktest(
    *,
    attacks: Sequence[str],
    states: Sequence[str],
    jobs: int | None,
    json_output: bool,
    report: Path | None,
    real: RealPrograms | None = None,
    where: Where | None = None,
) -> int:
    """Run the matrix and write its reports.

    Args:
        attacks: ids; empty for all.
        states: names; empty for all.
        jobs: number of worlds in parallel; None for what suits this machine.
        json_output: one JSON object on standard output, and nothing else there.
        report: directory for the report files; None to write none.
        real: a core and a server instead of the stand-ins; attacks that require the stand-in core are left out.
        where: virtual machines; None: namespaces.

    Returns:
        0 if everything held, 1 if anything leaked, 3 if nothing leaked but not everything is proven.

    Raises:
        UserError: not root, or an unknown attack or state.
    """
    _require_root()
    chosen, modes = choose_attacks(attacks), choose_modes(states)
    if real is not None:
        left_out = [attack.id for attack in chosen if attack.standin_only]
        chosen = tuple(attack for attack in chosen if not attack.standin_only)
        if left_out:
            names = ", ".join(left_out)
            click.echo(_("Left out, because they require the stand-in core: {names}.").format(names=names), err=True)
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="psiphon-leaktest-")))
        if where is None:
            play = partial(_play, chosen, modes, jobs or default_jobs(), real=real, quiet=json_output)
            return _run_one(play, scratch, report, json_output=json_output)
        machines, lacking = choose_machines(
            where.machine, image=where.image, modules=where.modules, results=where.results, directory=scratch
        )
        for line in lacking:
            click.echo(_("Left out: {line}").format(line=line), err=True)
        if where.results is not None and where.machine == ALL:
            where.results.mkdir(parents=True, exist_ok=True)
        codes = []
        for machine in machines:
            name = machine.name.removeprefix(PREFIX)
            click.echo(_("{machine}: Linux {version}, with the programs of this machine").format(
                machine=machine.name, version=machine.kernel.version), err=json_output)  # fmt: skip
            own = report / name if report is not None and where.machine == ALL else report
            play = partial(
                _play, chosen, modes, jobs or max(1, default_jobs() // 3), real=None, quiet=json_output, machine=machine
            )
            codes.append(_run_one(play, scratch, own, json_output=json_output))
    return EXIT_LEAK if EXIT_LEAK in codes else max(codes)


def _run_one(play: Callable[[Path], Result], scratch: Path, report: Path | None, *, json_output: bool) -> int:
    directory = scratch if report is None else report / "frames"
    directory.mkdir(parents=True, exist_ok=True)
    result = play(directory)
    if report is not None:
        (report / "report.html").write_text(render_page(result), encoding="utf-8")
        (report / "report.json").write_text(json.dumps(result.describe(), indent=1), encoding="utf-8")
        (report / "junit.xml").write_text(render_junit(result), encoding="utf-8")
    if json_output:
        click.echo(json.dumps(result.describe()))
    else:
        show_result(result)
        if report is not None:
            click.echo(_("The report is in {path}").format(path=report / "report.html"))
    if result.held:
        return 0
    return EXIT_LEAK if result.count()[Kind.LEAK] else EXIT_UNPROVEN


def _require_root() -> None:
    if os.geteuid() != 0:
        raise UserError(
            _("The leak test cannot start"), _("its laboratory needs root"), _("Run it again with sudo in front.")
        )


def run_chaos_command(*, seed: int, minutes: float, json_output: bool, report: Path | None) -> int:
    """Play random episodes and show the result.

    Returns:
        0 if every episode held, 1 if one did not.

    Raises:
        UserError: not root.
    """
    from psiphon_lab.leaktest.chaos import run_chaos

    _require_root()
    with contextlib.ExitStack() as stack:
        directory = report or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="psiphon-chaos-")))
        directory.mkdir(parents=True, exist_ok=True)
        done = run_chaos(
            seed=seed, minutes=minutes, directory=directory, say=lambda line: click.echo(line, err=json_output)
        )
        if report is not None:
            (report / "chaos.json").write_text(json.dumps(done, indent=1), encoding="utf-8")
    if json_output:
        click.echo(json.dumps(done))
    else:
        click.echo(
            _("{episodes} episodes from seed {seed}, {frames} frames judged, {seconds:.0f} s.").format(
                episodes=done["episodes"], seed=seed, frames=done["frames_judged"], seconds=done["seconds"]
            )
        )
    return 0 if done["held"] else EXIT_LEAK


def _play(
    attacks: tuple[Attack, ...],
    modes: tuple[Mode, ...],
    jobs: int,
    directory: Path,
    *,
    real: RealPrograms | None,
    quiet: bool,
    machine: Chosen | None = None,
) -> Result:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    results = None
    if machine is not None:
        try:
            results = machine.open_results(directory)
        except LabError as error:
            raise UserError(_("The leak test cannot start"), str(error), _("Name another file.")) from error
    done = () if results is None else results.done
    total = sum(len(task.pairs) for task in plan_tasks(attacks, modes, directory, done=done))
    console = Console(stderr=quiet)
    out_of_reach = {attack.id for attack in attacks if attack.out_of_reach}
    frames = leaks = 0
    with Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn(_("left")),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        refresh_per_second=4,
    ) as progress:
        bar = progress.add_task(_("attacks in states"), total=total)

        def note(cell: Cell) -> None:
            nonlocal frames, leaks
            if cell.mode is not Mode.CONTROL:
                frames += cell.judgement.frames
                if cell.judgement.leaks and cell.attack not in out_of_reach:
                    leaks += 1
                    first = cell.judgement.leaks[0].text
                    console.print(
                        f"[bold red]{_('LEAK')}[/] {cell.attack} {cell.mode}: {escape(first)}", highlight=False
                    )
            if cell.error:
                console.print(f"[yellow]?[/] {cell.attack} {cell.mode}: {escape(cell.error)}", highlight=False)
            if cell.mode is Mode.CONTROL and len(cell.seen) < len(cell.tried):
                lost = ", ".join(item.name for item in cell.tried if item.name not in cell.seen)
                console.print(f"[yellow]?[/] {cell.attack} {_('without the lock, not seen')}: {escape(lost)}",
                              highlight=False)  # fmt: skip
            task = progress.tasks[bar]
            if not console.is_terminal and int(task.completed) % LINE_EVERY == LINE_EVERY - 1:
                left = "?" if task.time_remaining is None else f"{task.time_remaining / 60:.0f}"
                console.print(_("{done} of {total}, about {left} min left").format(
                    done=int(task.completed) + 1, total=total, left=left))  # fmt: skip
            progress.update(bar, advance=1, description=_("{frames} frames, {leaks} leaks").format(
                frames=frames, leaks=leaks))  # fmt: skip

        return run_matrix(
            attacks,
            modes,
            jobs=jobs,
            recordings=directory,
            on_cell=note,
            on_broken=lambda text: console.print(f"[red]{_('The machine broke')}[/]: {escape(text)}", highlight=False),
            real=real,
            kernel=None if machine is None else machine.kernel,
            results=results,
        )


def show_result(result: Result) -> None:
    """Show the matrix on a terminal, 80 columns wide."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False, padding=(0, 1), show_header=True, header_style="dim")
    table.add_column(_("attack"), no_wrap=True, max_width=32)
    for number, _mode in enumerate(result.modes, start=1):
        table.add_column(str(number), justify="center", no_wrap=True)
    cells = {(cell["attack"], cell["state"]): cell for cell in result.cells}
    for attack in result.attacks:
        row = [f"{attack.id:<5}{attack.name}"]
        for mode in result.modes:
            kind = Kind(cells[attack.id, mode]["verdict"])
            sign, color = SIGNS[kind], COLORS[kind]
            if attack.out_of_reach and kind is Kind.LEAK:
                sign, color = "!", "magenta"
            row.append(f"[{color}]{sign}[/]")
        table.add_row(*row)
    console.print(table)
    states = "  ".join(f"{number} {mode}" for number, mode in enumerate(result.modes, start=1))
    console.print(f"[dim]{states}[/]")
    for cell in result.cells:
        out_of_reach = next(attack.out_of_reach for attack in result.attacks if attack.id == cell["attack"])
        if cell["verdict"] in {Kind.LEAK, Kind.INCONCLUSIVE, Kind.WEAKER} and not out_of_reach:
            kind = Kind(cell["verdict"])
            console.print(f"[{COLORS[kind]}]{kind}[/] {cell['attack']} {cell['state']}: {escape(cell['reason'])}")
    counts: Counter[str] = result.count()
    if result.machine != NAMESPACES:
        missing = ", ".join(result.missing) or _("nothing that the service uses")
        console.print(_("Linux {version} lacks {missing}.").format(version=result.kernel, missing=missing))
    if mixture := describe_mixture(result.commits):
        console.print(mixture)
    stopped_all = not counts["out-of-reach"] and not counts[Kind.WEAKER]
    verdict = _("Nothing leaked.") if stopped_all else _("Everything that rules can stop was stopped.")
    shown = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
    console.print(
        _("{counts}; {frames} frames judged, {seconds:.0f} s.").format(
            counts=shown, frames=result.frames, seconds=result.seconds
        ),
        f"[bold green]{verdict}[/]" if result.held else f"[bold red]{_('Not everything held.')}[/]",
    )
