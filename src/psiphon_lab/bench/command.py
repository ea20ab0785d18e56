# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The command `psiphon-vpn bench`: runs the measurements, shows them, and writes them to files."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from psiphon_lab.bench.compare import Change, list_changes, list_only
from psiphon_lab.bench.families import FAMILIES
from psiphon_lab.bench.html_page import render_page
from psiphon_lab.bench.model import Report, ReportError, read_report
from psiphon_lab.bench.runner import run_families
from psiphon_lab.bench.steps import QUICK_ROUNDS, ROUNDS, Family, Settings
from psiphon_lab.bench.view import render_all, render_screen
from psiphon_lab.tunnel_ends import RealPrograms
from psiphon_vpn.errors import UserError
from psiphon_vpn.i18n import _

EXIT_INCOMPLETE = 3


@dataclass(frozen=True, kw_only=True)
class Output:
    """Where the results go. old: an older run's JSON to compare with."""

    json_file: Path | None = None
    html_file: Path | None = None
    old: Path | None = None
    every: bool = False


def choose_families(names: Sequence[str]) -> tuple[Family, ...]:
    """The families with these names; all if there are none. Raises UserError if one is unknown."""
    known = {family.name: family for family in FAMILIES}
    for name in names:
        if name not in known:
            raise UserError(
                _("The bench cannot start"),
                _("there is no family {name}").format(name=name),
                _("The families are: {names}.").format(names=", ".join(known)),
            )
    return tuple(family for name, family in known.items() if not names or name in names)


def read_old(path: Path) -> Report:
    """An older run. Raises UserError if the file is none."""
    try:
        return read_report(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, ReportError) as error:
        raise UserError(
            _("The bench cannot compare"),
            _("{path} is not the JSON of an older run ({error})").format(path=path, error=error),
            _("Give a file that --json has written."),
        ) from error


def run_bench(
    names: Sequence[str], *, rounds: int | None, quick: bool, real: RealPrograms | None, output: Output
) -> int:
    """Run families and write the results.

    Returns:
        0, or 3 if something could not be measured.

    Raises:
        UserError: not root, an unknown family, or no older run in the given file.
    """
    if os.geteuid() != 0:
        raise UserError(
            _("The bench cannot start"), _("its laboratory needs root"), _("Run it again with sudo in front.")
        )
    families = choose_families(names)
    old = None if output.old is None else read_old(output.old)
    settings = Settings(rounds=rounds or (QUICK_ROUNDS if quick else ROUNDS), quick=quick, real=real)
    report = _run(families, settings)
    changes = None if old is None else list(list_changes(old, report))
    _write(report, changes, output)
    apart = 0 if old is None else sum(map(len, list_only(old, report)))
    for line in render_all(report) if output.every else render_screen(report, changes, apart=apart):
        click.echo(line)
    return EXIT_INCOMPLETE if report.failures else 0


def _write(report: Report, changes: list[Change] | None, output: Output) -> None:
    if output.json_file is not None:
        output.json_file.write_text(json.dumps(report.describe(), indent=1) + "\n", encoding="utf-8")
    if output.html_file is not None:
        output.html_file.write_text(render_page(report, changes), encoding="utf-8")


def show_left(seconds: float) -> str:
    """A time that is left, for people."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    return f"{minutes}:{rest:02d}"


def _run(families: Sequence[Family], settings: Settings) -> Report:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = (
        BarColumn(bar_width=14),
        TextColumn("{task.percentage:>3.0f} % " + _("left") + " {task.fields[left]:>6}"),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, transient=True, refresh_per_second=4) as progress:
        bar = progress.add_task("", total=1.0, left="?")

        def tell(name: str, so_far: float, left: float) -> None:
            progress.update(
                bar, completed=so_far / (so_far + left) if left else 1.0, description=name[:44], left=show_left(left)
            )
            if not console.is_terminal:
                click.echo(f"{show_left(so_far)} {_('left')} {show_left(left)} {name}", err=True)

        return run_families(families, settings, tell=tell)
