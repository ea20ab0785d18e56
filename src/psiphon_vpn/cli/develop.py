# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands of a checkout: the demonstration, the tests and the measurements."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import click

from psiphon_vpn.cli import checkout
from psiphon_vpn.cli.tree import find_commands
from psiphon_vpn.errors import UserError
from psiphon_vpn.i18n import _

_WHOLE_SYSTEMS: Final = ("tests/booted", "tests/guest", "tests/vm")
_FIGURES: Final = "tests/integration/test_figures.py"
_BINARY: Final = click.Path(path_type=Path, exists=True, dir_okay=False, resolve_path=True)
_RESULT: Final = click.Path(path_type=Path, dir_okay=False, resolve_path=True)


@click.command(help=_("Show in a laboratory, on real packets, that nothing leaks."))
@click.option("--system", is_flag=True, help=_("Install it on a whole Debian system that is booted for it."))
@click.option("--json", "as_json", is_flag=True, help=_("Print one JSON object and nothing else."))
@click.option("--keep", is_flag=True, help=_("Leave the laboratory standing and say how to look around in it."))
@click.option("--core", type=_BINARY, help=_("A real psiphon-tunnel-core; needs --server too."))
@click.option("--server", type=_BINARY, help=_("A real psiphond; needs --core too."))
def demo(*, system: bool, as_json: bool, keep: bool, core: Path | None, server: Path | None) -> int:
    """Run the demonstration."""
    if system and (keep or core is not None or server is not None):
        raise click.UsageError(_("--system goes together with --json only."))
    _need_both(_("The demonstration cannot start"), core, server)
    _need_checkout(_("There is no laboratory here"))
    if system:
        from psiphon_lab.booted.demo import run_system_demo

        return run_system_demo(json_output=as_json)
    from psiphon_lab.demo import run_demo

    return run_demo(json_output=as_json, keep=keep, core=core, server=server)


@click.command(
    help=_("Try every known leak in every state, in a laboratory, and judge by the frames outside."),
    short_help=_("Try every known leak in every state, in a laboratory."),
)
@click.option("--attack", "attacks", multiple=True, metavar="ID", help=_("Only this one (A05); may be repeated."))
@click.option("--state", "states", multiple=True, metavar="NAME", help=_("Only in this state; may be repeated."))
@click.option("--jobs", type=click.IntRange(1, 64), help=_("Laboratories side by side."))
@click.option("--json", "as_json", is_flag=True, help=_("Print one JSON object and nothing else."))
@click.option(
    "--report",
    type=click.Path(path_type=Path, file_okay=False, resolve_path=True),
    help=_("Directory for the report: a page, JSON, JUnit XML, and the frames."),
)
@click.option("--chaos", is_flag=True, help=_("Random attacks, faults and commands one after the other instead."))
@click.option("--seed", type=int, default=1, show_default=True, help=_("Of --chaos: the same seed, the same steps."))
@click.option("--minutes", type=click.FloatRange(0.1, 1440), default=5.0, show_default=True, help=_("Of --chaos."))
@click.option("--core", type=_BINARY, help=_("A real psiphon-tunnel-core; needs --server too."))
@click.option("--server", type=_BINARY, help=_("A real psiphond; needs --core too."))
@click.option(
    "--machine", metavar="NAME", help=_("A virtual machine with another kernel: vm:debian-11, vm:newest, vm:all.")
)
@click.option("--kernel", "image", type=_BINARY, help=_("A virtual machine with this kernel, a file vmlinuz-VERSION."))
@click.option(
    "--modules",
    type=click.Path(path_type=Path, exists=True, file_okay=False, resolve_path=True),
    help=_("The directory of its modules; otherwise /lib/modules/VERSION."),
)
@click.option(
    "--continue",
    "results",
    type=click.Path(path_type=Path, resolve_path=True),
    help=_("File for the results of a virtual machine: what is in it is not done again. For vm:all, a directory."),
)
def leaktest(
    *,
    attacks: tuple[str, ...],
    states: tuple[str, ...],
    jobs: int | None,
    as_json: bool,
    report: Path | None,
    chaos: bool,
    seed: int,
    minutes: float,
    core: Path | None,
    server: Path | None,
    machine: str | None,
    image: Path | None,
    modules: Path | None,
    results: Path | None,
) -> int:
    """Run the leak test."""
    what = _("The leak test cannot start")
    _need_both(what, core, server)
    _need_checkout(what)
    virtual = machine is not None or image is not None
    if virtual and (chaos or core is not None or (machine is not None and image is not None)):
        raise click.UsageError(_("Give one of --machine, --kernel, --chaos, and --core with --server."))
    if not virtual and (modules is not None or results is not None):
        raise click.UsageError(_("--modules and --continue go together with a virtual machine only."))
    from psiphon_lab.leaktest.command import Where, run_chaos_command, run_leaktest
    from psiphon_lab.tunnel_ends import RealPrograms

    real = RealPrograms(core=core, server=server) if core is not None and server is not None else None
    if chaos and real is not None:
        raise click.UsageError(_("--chaos works only with the stand-in tunnel program, since it makes it misbehave."))
    if chaos:
        return run_chaos_command(seed=seed, minutes=minutes, json_output=as_json, report=report)
    where = Where(machine=machine, image=image, modules=modules, results=results) if virtual else None
    return run_leaktest(
        attacks=attacks, states=states, jobs=jobs, json_output=as_json, report=report, real=real, where=where
    )


@click.command(
    help=_("Measure in a laboratory how fast the service is, beside the bare tunnel program in the same run."),
    short_help=_("Measure how fast it is, beside the bare tunnel program."),
)
@click.argument("families", nargs=-1, metavar="[FAMILY]...")
@click.option("--quick", is_flag=True, help=_("Few rounds and points: to see that it works, not to judge by."))
@click.option("--rounds", type=click.IntRange(1, 100), help=_("Of each figure; nine otherwise."))
@click.option("--json", "json_file", type=_RESULT, help=_("File for all rounds and what follows from them."))
@click.option("--html", "html_file", type=_RESULT, help=_("File for one page with plots."))
@click.option("--compare", "old", type=_BINARY, help=_("JSON of an older run: tell what changed beyond noise."))
@click.option("--all", "every", is_flag=True, help=_("Print every figure instead of a screenful."))
@click.option("--core", type=_BINARY, help=_("A real psiphon-tunnel-core; needs --server too."))
@click.option("--server", type=_BINARY, help=_("A real psiphond; needs --core too."))
def bench(
    *,
    families: tuple[str, ...],
    quick: bool,
    rounds: int | None,
    json_file: Path | None,
    html_file: Path | None,
    old: Path | None,
    every: bool,
    core: Path | None,
    server: Path | None,
) -> int:
    """Run the measurements."""
    what = _("The bench cannot start")
    _need_both(what, core, server)
    _need_checkout(what)
    from psiphon_lab.bench.command import Output, run_bench
    from psiphon_lab.tunnel_ends import RealPrograms

    real = RealPrograms(core=core, server=server) if core is not None and server is not None else None
    output = Output(json_file=json_file, html_file=html_file, old=old, every=every)
    return run_bench(families, rounds=rounds, quick=quick, real=real, output=output)


def _need_both(what: str, core: Path | None, server: Path | None) -> None:
    if (core is None) != (server is None):
        raise UserError(
            what,
            _("it needs both a psiphon-tunnel-core and a psiphond, or neither"),
            _("Give --core and --server together."),
        )


@click.command(
    "test",
    help=_("Run every linter, the type checker and every test."),
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.option("--fast", is_flag=True, help=_("Leave out the tests that boot whole systems."))
@click.option(
    "--kernels",
    is_flag=True,
    help=_("Also run the long tests on virtual computers, and the whole leak test on every kernel: it takes hours."),
)
@click.argument("pytest_args", nargs=-1, type=click.UNPROCESSED)
def run_tests(*, fast: bool, kernels: bool, pytest_args: tuple[str, ...]) -> int:
    """Run the checks one after the other, pytest last so that its summaries come last."""
    _need_checkout(_("There are no tests here"))
    checks = {
        "ruff check": ["ruff", "check", "."],
        "ruff format": ["ruff", "format", "--check", "."],
        "mypy": ["mypy"],
    }
    failed = [name for name, argv in checks.items() if not _run_module(name, argv)]
    if failed:
        click.echo(click.style(_("Failed so far: {names}").format(names=", ".join(failed)), fg="red"), err=True)
    for name, argv in plan_tests(fast=fast, kernels=kernels, pytest_args=pytest_args).items():
        if not _run_module(name, ["pytest", *argv]):
            failed.append(name)
    if kernels and not _run_module(_("every kernel"), ["psiphon_vpn", "leaktest", "--machine", "vm:all"]):
        failed.append(_("every kernel"))
    if failed:
        click.echo(click.style(_("Failed: {names}").format(names=", ".join(failed)), fg="red"), err=True)
    return 1 if failed else 0


def plan_tests(*, fast: bool, kernels: bool = False, pytest_args: tuple[str, ...]) -> dict[str, list[str]]:
    """The runs of pytest, one after the other.

    Most tests spend most of their time waiting, so several files run in parallel. Tests that measure times, or boot
    whole systems, run alone. Tests that the user selects run in one plain run. `kernels` adds those with that mark,
    which take an hour.
    """
    booted = [] if fast else [*_WHOLE_SYSTEMS]
    if pytest_args:
        return {"pytest": [*(f"--ignore={path}" for path in _WHOLE_SYSTEMS if fast), *pytest_args]}
    left_out = [f"--ignore={path}" for path in (*_WHOLE_SYSTEMS, _FIGURES)]
    return {
        "pytest, in parallel": ["-n", "auto", "--maxprocesses", "4", "--dist", "loadfile", *left_out],
        "pytest, one by one": [_FIGURES, *booted, *([] if kernels else ["-m", "not kernels"])],
    }


def _need_checkout(what: str) -> None:
    if not checkout.is_checkout():
        raise UserError(what, _("this is an installed copy"), _("Run it from a checkout of the project."))


@click.command(help=_("Build the packages for dpkg and rpm."))
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help=_("Directory for the packages; it is created if necessary."),
)
def package(*, output: Path) -> int:
    """Build the packages, and print their paths and SHA-256."""
    import hashlib

    _need_checkout(_("The packages cannot be built"))
    from psiphon_vpn.system.packages import build_packages

    for path in build_packages(find_commands(), output):
        click.echo(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path}")
    return 0


@click.command(
    "pin-core",
    help=_("Maintainers: add size and SHA-256 to the manifest's entry for a tunnel program."),
    short_help=_("Maintainers: complete an entry of the manifest."),
)
@click.argument("path", type=_BINARY)
def pin_core(*, path: Path) -> int:
    """Pin a core by its content, if the manifest has its git blob id."""
    import hashlib
    from dataclasses import replace

    from psiphon_vpn.core.manifest import (
        MANIFEST_PATH,
        MAX_CORE_SIZE,
        compute_blob_id,
        parse_manifest,
        render_pinned,
    )

    what = _("The tunnel program was not pinned")
    _need_checkout(what)
    if path.stat().st_size > MAX_CORE_SIZE:
        raise UserError(
            what, _("the file is larger than a tunnel program can be"), _("Give the path of the program itself.")
        )
    content = path.read_bytes()
    blob = compute_blob_id([content], len(content))
    text = MANIFEST_PATH.read_text(encoding="utf-8")
    known = next((core for core in parse_manifest(text).cores if core.blob == blob), None)
    if known is None:
        raise UserError(
            what,
            _("no entry of the manifest has its git blob id, {blob}").format(blob=blob),
            _("Take the file from the commit that the manifest names, or add an entry for this one."),
        )
    pinned = replace(known, size=len(content), sha256=hashlib.sha256(content).hexdigest())
    MANIFEST_PATH.write_text(render_pinned(text, pinned), encoding="utf-8")
    click.echo(_("Pinned {revision}: {size} bytes, SHA-256 {sha256}").format(**vars(pinned)))
    return 0


def _run_module(title: str, argv: list[str]) -> bool:
    click.echo(click.style(f"== {title}", bold=True), err=True)
    # Not run(): the user should see the output at once.
    command = [sys.executable, "-m", *argv]
    return subprocess.call(command, cwd=checkout.PROJECT_ROOT, env=dict(os.environ), stdin=subprocess.DEVNULL) == 0


COMMANDS: Final = (demo, leaktest, bench, run_tests, package, pin_core)
