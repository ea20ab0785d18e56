"""`diagnose` and `verify`: what is wrong, and what to do about it. Both only read."""

import json
import os
import shutil
from pathlib import Path
from typing import Final

import click

from psiphon_vpn.errors import NotRootError
from psiphon_vpn.i18n import _

_ROOT: Final = click.Path(path_type=Path, exists=True, file_okay=False)


def _need_root(command: str) -> None:
    if os.geteuid() != 0:
        raise NotRootError(f"psiphon-vpn {command}")


@click.command(
    help=_(
        "Check the lock, the tunnel and the installation, and say what to do about what is wrong. Changes nothing. "
        "Ends with 0 when all is well, 1 when something is wrong but the machine is locked, 2 when something is open."
    )
)
@click.option("--json", "as_json", is_flag=True, help=_("Print one JSON object for programs."))
@click.option("--quiet", is_flag=True, help=_("Show only what is wrong or worth knowing."))
@click.option("--root", type=_ROOT, default=Path("/"), hidden=True)
@click.pass_obj
def diagnose(runtime_dir: Path, *, as_json: bool, quiet: bool, root: Path) -> int:
    """Run the checks; the exit code says what they found."""
    _need_root("diagnose")
    from psiphon_vpn.diagnose import render
    from psiphon_vpn.diagnose.engine import run_checks
    from psiphon_vpn.diagnose.facts import Facts
    from psiphon_vpn.diagnose.model import find_exit_code
    from psiphon_vpn.diagnose.registry import CHECKS
    from psiphon_vpn.diagnose.system import RealSystem
    from psiphon_vpn.system.layout import Layout

    results = run_checks(CHECKS, lambda: Facts(RealSystem(), Layout(root=root), runtime_dir=runtime_dir))
    if as_json:
        click.echo(render.render_json(render.to_json(results)))
    else:
        click.echo(render.render_text(results, width=shutil.get_terminal_size().columns, quiet=quiet))
    return find_exit_code(results)


@click.command(help=_("Compare every installed file with what was installed. Ends with 0 when all are the same, or 1."))
@click.option("--json", "as_json", is_flag=True, help=_("Print one JSON object for programs."))
@click.option("--root", type=_ROOT, default=Path("/"), hidden=True)
def verify(*, as_json: bool, root: Path) -> int:
    """Compare files; each that differs is named."""
    _need_root("verify")
    from psiphon_vpn.diagnose import verify as verifier
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
            text = _("{count} of the installed files are not as they were installed.").format(
                count=len(report.troubles)
            )
            click.echo(text + " " + _("To put them right: sudo psiphon-vpn install"))
        else:
            click.echo(_("All {count} files are as they were installed.").format(count=report.count))

    return 1 if report.troubles else 0


COMMANDS: Final = (diagnose, verify)
