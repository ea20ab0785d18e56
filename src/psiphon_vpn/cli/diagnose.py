# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""`diagnose` and `verify`: what is wrong, and what to do about it. Both only read."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from psiphon_vpn.errors import NotRootError
from psiphon_vpn.i18n import _

if TYPE_CHECKING:
    from psiphon_vpn.diagnose.facts import Facts
    from psiphon_vpn.diagnose.model import Result

_ROOT: Final = click.Path(path_type=Path, exists=True, file_okay=False)


def _need_root(command: str) -> None:
    if os.geteuid() != 0:
        raise NotRootError(f"psiphon-vpn {command}")


@click.command(
    help=_(
        "Check the lock, the tunnel and the installation, and say what to do if something is wrong. Changes nothing. "
        "Ends with 0 when all is well, 1 when something is wrong but the machine is locked, 2 when something is open."
    ),
    short_help=_("Check everything, and say what to do if it is wrong."),
)
@click.option("--json", "as_json", is_flag=True, help=_("Print one JSON object for programs."))
@click.option("--quiet", is_flag=True, help=_("Show only what is wrong or worth knowing."))
@click.option("--live", is_flag=True, help=_("Also try harmless leaks, and watch the network interfaces for them."))
@click.option(
    "--report",
    type=click.Path(path_type=Path, dir_okay=False),
    help=_("Also write a report without addresses, names and secrets into a new file."),
)
@click.option("--root", type=_ROOT, default=Path("/"), hidden=True)
@click.pass_obj
def diagnose(runtime_dir: Path, *, as_json: bool, quiet: bool, live: bool, report: Path | None, root: Path) -> int:
    """Run the checks; their outcomes determine the exit code."""
    _need_root("diagnose")
    from psiphon_vpn.diagnose import render
    from psiphon_vpn.diagnose.engine import run_checks
    from psiphon_vpn.diagnose.facts import Facts
    from psiphon_vpn.diagnose.model import find_exit_code
    from psiphon_vpn.diagnose.registry import CHECKS
    from psiphon_vpn.diagnose.system import RealSystem
    from psiphon_vpn.system.layout import Layout

    def make_facts() -> Facts:
        return Facts(RealSystem(), Layout(root=root), runtime_dir=runtime_dir)

    results = run_checks(CHECKS, make_facts)
    found = _run_live(make_facts()) if live else None
    if found is not None:
        results += found[0]
    if as_json:
        click.echo(render.render_json(render.to_json(results, live=None if found is None else found[1])))
    else:
        click.echo(render.render_text(results, width=shutil.get_terminal_size().columns, quiet=quiet))
        if found is not None:
            click.echo("\n" + click.wrap_text(found[1]["limits"], min(shutil.get_terminal_size().columns, 100)))
    if report is not None:
        from psiphon_vpn.diagnose.report import render_report, write_report

        write_report(report, render_report(make_facts(), results))
        click.echo(_("The report is in {path}. Read it before you share it.").format(path=report), err=True)
    return find_exit_code(results)


def _run_live(facts: Facts) -> tuple[tuple[Result, ...], dict[str, Any]]:
    from psiphon_vpn.diagnose import live
    from psiphon_vpn.diagnose.no_answer import Unknowable
    from psiphon_vpn.network.uplink import find_headerless, find_wires

    try:
        snapshot = facts.network.snapshot
        report = live.run_live(find_wires(snapshot), find_headerless(snapshot))
    except (OSError, Unknowable) as error:
        return live.to_results(None, str(error)), {"limits": _(live.LIMITS)}
    return live.to_results(report), report.to_json()


@click.command(
    help=_("Compare every installed file with what was installed. Ends with 0 if all are the same, else 1."),
    short_help=_("Compare every installed file with what was installed."),
)
@click.option("--json", "as_json", is_flag=True, help=_("Print one JSON object for programs."))
@click.option("--root", type=_ROOT, default=Path("/"), hidden=True)
def verify(*, as_json: bool, root: Path) -> int:
    """Compare files, and name each that differs."""
    _need_root("verify")
    from psiphon_vpn.diagnose import verify as verifier
    from psiphon_vpn.diagnose.model import INSTALL_AGAIN
    from psiphon_vpn.diagnose.system import RealSystem
    from psiphon_vpn.system.layout import Layout

    report = verifier.verify(RealSystem(), Layout(root=root))
    if as_json:
        document = {
            "version": report.version,
            "files": report.count,
            "troubles": [{"path": item.path, "kind": item.kind, "detail": item.detail} for item in report.troubles],
        }
        click.echo(json.dumps(document))
    else:
        for item in report.troubles:
            click.echo(click.style(f"x {item.path}: {item.detail}", fg="red"))
        if report.troubles:
            text = _("Installed files that are not as they were installed: {count}.").format(count=len(report.troubles))
            click.echo(text + " " + _(INSTALL_AGAIN))
        else:
            click.echo(_("All {count} files are as they were installed.").format(count=report.count))

    return 1 if report.troubles else 0


COMMANDS: Final = (diagnose, verify)
