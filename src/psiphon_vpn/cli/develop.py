"""The commands of a checkout: the demonstration and the tests."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import click

from psiphon_vpn.errors import UserError
from psiphon_vpn.i18n import _

_PROJECT_ROOT: Final = Path(__file__).resolve().parents[3]
_BINARY: Final = click.Path(path_type=Path, exists=True, dir_okay=False, resolve_path=True)


@click.command(help=_("Show in a laboratory, on real packets, that nothing leaks."))
@click.option("--json", "as_json", is_flag=True, help=_("Print one JSON object and nothing else."))
@click.option("--keep", is_flag=True, help=_("Leave the laboratory standing and say how to look around in it."))
@click.option("--core", type=_BINARY, help=_("A real psiphon-tunnel-core; needs --server too."))
@click.option("--server", type=_BINARY, help=_("A real psiphond; needs --core too."))
def demo(*, as_json: bool, keep: bool, core: Path | None, server: Path | None) -> int:
    """Run the demonstration."""
    if (core is None) != (server is None):
        raise UserError(
            _("The demonstration cannot start"),
            _("it needs both a psiphon-tunnel-core and a psiphond, or neither"),
            _("Give --core and --server together."),
        )
    from psiphon_vpn.lab.demo import run_demo

    return run_demo(json_output=as_json, keep=keep, core=core, server=server)


@click.command(help=_("Try every known leak in every state, in a laboratory, and judge by the frames outside."))
@click.option("--attack", "attacks", multiple=True, metavar="ID", help=_("Only this one (A05); may be repeated."))
@click.option("--state", "states", multiple=True, metavar="NAME", help=_("Only in this state; may be repeated."))
@click.option("--jobs", type=click.IntRange(1, 64), help=_("Laboratories side by side."))
@click.option("--json", "as_json", is_flag=True, help=_("Print one JSON object and nothing else."))
@click.option(
    "--report",
    type=click.Path(path_type=Path, file_okay=False, resolve_path=True),
    help=_("Directory for the report: a page, JSON, JUnit XML, and the frames."),
)
def leaktest(
    *, attacks: tuple[str, ...], states: tuple[str, ...], jobs: int | None, as_json: bool, report: Path | None
) -> int:
    """Run the leak test."""
    from psiphon_vpn.lab.leaktest.command import run_leaktest

    return run_leaktest(attacks=attacks, states=states, jobs=jobs, json_output=as_json, report=report)


@click.command(
    "test",
    help=_("Run every linter, the type checker and every test."),
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("pytest_args", nargs=-1, type=click.UNPROCESSED)
def run_tests(pytest_args: tuple[str, ...]) -> int:
    """Run the checks one after the other, pytest last so that its summary is the last thing seen."""
    if not (_PROJECT_ROOT / "pyproject.toml").is_file():
        raise UserError(
            _("There are no tests here"),
            _("this is an installed copy"),
            _("Run it from a checkout of the project."),
        )
    checks = {
        "ruff check": ["ruff", "check", "."],
        "ruff format": ["ruff", "format", "--check", "."],
        "mypy": ["mypy"],
    }
    failed = [name for name, argv in checks.items() if not _run_module(name, argv)]
    if failed:
        click.echo(click.style(_("Failed so far: {names}").format(names=", ".join(failed)), fg="red"), err=True)
    if not _run_module("pytest", ["pytest", *pytest_args]):
        failed.append("pytest")
    return 1 if failed else 0


def _run_module(title: str, argv: list[str]) -> bool:
    click.echo(click.style(f"== {title}", bold=True), err=True)
    # Not run(): its output is to be seen as it comes.
    command = [sys.executable, "-m", *argv]
    return subprocess.call(command, cwd=_PROJECT_ROOT, env=dict(os.environ), stdin=subprocess.DEVNULL) == 0


COMMANDS: Final = (demo, leaktest, run_tests)
