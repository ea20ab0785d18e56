"""The command `psiphon-vpn leaktest`: the matrix with a live view, and the files that it leaves."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from string import ascii_lowercase

import click

from psiphon_lab.attacks import load_attacks
from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.cell import Cell
from psiphon_lab.leaktest.junit import render_junit
from psiphon_lab.leaktest.matrix import Result, default_jobs, plan_tasks, run_matrix
from psiphon_lab.leaktest.page import SIGNS, render_page
from psiphon_lab.leaktest.terms import MODES, Mode
from psiphon_lab.leaktest.verdict import Kind
from psiphon_lab.tunnel_ends import RealPrograms
from psiphon_vpn.errors import UserError
from psiphon_vpn.i18n import _

EXIT_LEAK, EXIT_UNPROVEN = 1, 3
COLORS = {Kind.HELD: "green", Kind.LEAK: "bold red", Kind.INCONCLUSIVE: "yellow", Kind.NO_SENSE: "dim"}


def choose_attacks(names: Sequence[str]) -> tuple[Attack, ...]:
    """The attacks of these ids; all without one. A name without its letter means all of that number.

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
    """The states of these names; all without one.

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
) -> int:
    """Run the matrix and write its reports.

    Args:
        attacks: ids; none for all.
        states: names; none for all.
        jobs: worlds side by side; None for what this machine can do.
        json_output: one JSON object on standard output, and nothing else there.
        report: directory for the reports; None for none but what is shown.
        real: a core and a server instead of the stand-ins. What only a stand-in core does is left out.

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
            click.echo(_("Left out, since only a stand-in core does it: {names}.").format(names=names), err=True)
    if report is not None:
        report.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="psiphon-leaktest-")) if report is None else report / "frames"
    directory.mkdir(exist_ok=True)
    try:
        result = _play(chosen, modes, jobs or default_jobs(), directory, real, quiet=json_output)
    finally:
        if report is None:
            shutil.rmtree(directory, ignore_errors=True)
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
    """Play random episodes and say what came of them.

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
            seed=seed, minutes=minutes, directory=directory, tell=lambda line: click.echo(line, err=json_output)
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
    real: RealPrograms | None,
    *,
    quiet: bool,
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

    total = sum(len(task.attacks) for task in plan_tasks(attacks, modes, directory))
    console = Console(stderr=quiet)
    beyond = {attack.id for attack in attacks if attack.beyond}
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

        def tell(cell: Cell) -> None:
            nonlocal frames, leaks
            if cell.mode is not Mode.CONTROL:
                frames += cell.judgement.frames
                if cell.judgement.leaks and cell.attack not in beyond:
                    leaks += 1
                    first = cell.judgement.leaks[0].text
                    console.print(
                        f"[bold red]{_('LEAK')}[/] {cell.attack} {cell.mode}: {escape(first)}", highlight=False
                    )
            if cell.error:
                console.print(f"[yellow]?[/] {cell.attack} {cell.mode}: {escape(cell.error)}", highlight=False)
            progress.update(bar, advance=1, description=_("{frames} frames, {leaks} leaks").format(
                frames=frames, leaks=leaks))  # fmt: skip

        return run_matrix(attacks, modes, jobs=jobs, recordings=directory, tell=tell, real=real)


def show_result(result: Result) -> None:
    """The matrix for a terminal, 80 columns wide."""
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
            if attack.beyond and kind is Kind.LEAK:
                sign, color = "!", "magenta"
            row.append(f"[{color}]{sign}[/]")
        table.add_row(*row)
    console.print(table)
    states = "  ".join(f"{number} {mode}" for number, mode in enumerate(result.modes, start=1))
    console.print(f"[dim]{states}[/]")
    for cell in result.cells:
        beyond = next(attack.beyond for attack in result.attacks if attack.id == cell["attack"])
        if cell["verdict"] in {Kind.LEAK, Kind.INCONCLUSIVE} and not beyond:
            kind = Kind(cell["verdict"])
            console.print(f"[{COLORS[kind]}]{kind}[/] {cell['attack']} {cell['state']}: {escape(cell['reason'])}")
    counts: Counter[str] = result.count()
    verdict = _("Whatever rules can stop was stopped.") if counts["out-of-reach"] else _("Nothing leaked.")
    told = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
    console.print(
        _("{told}; {frames} frames judged, {seconds:.0f} s.").format(
            told=told, frames=result.frames, seconds=result.seconds
        ),
        f"[bold green]{verdict}[/]" if result.held else f"[bold red]{_('Not everything held.')}[/]",
    )
