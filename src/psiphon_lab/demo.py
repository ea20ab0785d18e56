# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The demonstration: builds the laboratory, shows each step as it happens, and a table at the end."""

from __future__ import annotations

import contextlib
import json
import shutil
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import click

from psiphon_lab.censored import Censored, open_censored
from psiphon_lab.demo_steps import NETWORK, DemoSteps
from psiphon_lab.list_host import LIST_URL
from psiphon_lab.machine import Machine
from psiphon_lab.service_adapter import names
from psiphon_lab.service_adapter.daemon import render_client_command
from psiphon_lab.step import StepResult
from psiphon_lab.tunnel_ends import RealPrograms
from psiphon_lab.world import World
from psiphon_vpn.i18n import _, ngettext

Say = Callable[[str], None]


def run_demo(*, json_output: bool, keep: bool, core: Path | None, server: Path | None) -> int:
    """Run the demonstration.

    Args:
        json_output: one JSON object on standard output, and nothing else there.
        keep: leave the laboratory standing.
        core: a real psiphon-tunnel-core, with `server`; without them the laboratory's stand-ins.
        server: a real psiphond.

    Returns:
        The exit code: 0 only if every step held.
    """

    def say(text: str) -> None:
        click.echo(text, err=json_output)

    begin = time.monotonic()
    results: list[StepResult] = []
    with _open_testbed(core, server) as (censored, machine):
        world = censored.world
        say(click.wrap_text(_introduce(core), find_width()))
        steps = DemoSteps(
            censored,
            machine,
            announce=lambda text: say("\n" + click.wrap_text(text, find_width(), "  ", "  ")),
        )
        for number, result in enumerate(steps.play(), start=1):
            results.append(result)
            show_step(number, result, say)
        took = time.monotonic() - begin
        if keep:
            world.keep()
            machine.keep()
            censored.internet.keep()
    # A demonstration that broke off has fewer steps, and its last one did not hold.
    held = bool(results) and all(result.held for result in results)
    if json_output:
        click.echo(json.dumps(summarize(results, held=held, took=took, real=core is not None)))
    else:
        show_table(results, held=held, took=took)
    if keep:
        _explain_inspection(world, machine, say)
    return 0 if held else 1


@contextlib.contextmanager
def _open_testbed(core: Path | None, server: Path | None) -> Iterator[tuple[Censored, Machine]]:
    with contextlib.ExitStack() as stack:
        real = RealPrograms(core=core, server=server) if core is not None and server is not None else None
        censored = stack.enter_context(open_censored(real))
        machine = stack.enter_context(
            Machine(censored.world, core=censored.plain_core, entry=lambda: censored.internet.entry)
        )
        machine.trust_authority(censored.internet.list_host.authority.certificate)
        machine.trust_network(NETWORK, censored.internet.list_host.signer.render_profile(LIST_URL))
        yield censored, machine


def _introduce(core: Path | None) -> str:
    if core is not None:
        return _("The real service, with a real psiphon-tunnel-core and psiphond, in a laboratory on this machine.")
    return _(
        "The real service in a laboratory on this machine. The tunnel program and its server are stand-ins (test "
        "instruments of the laboratory); kernel, rules, routes, packets and frames are real."
    )


def find_width() -> int:
    """The width of texts in columns: the terminal's, but at least 40 and at most 100."""
    return max(40, min(shutil.get_terminal_size().columns, 100))


def announce(text: str, say: Say) -> None:
    """Announce what happens next."""
    say("\n" + click.wrap_text(text, find_width(), "  ", "  "))


def show_step(number: int, result: StepResult, say: Say) -> None:
    """Show a step and its verdict."""
    width = find_width()

    def wrapped(text: str, *, indent: int, sign: str = "", color: str | None = None, bold: bool = False) -> None:
        first, *rest = textwrap.wrap(text, width - indent) or [""]
        lead = click.style(sign.rjust(indent - 2), fg=color, bold=bold) + "  " if sign else " " * indent
        say(lead + first)
        for line in rest:
            say(" " * indent + line)

    for line in textwrap.wrap(f"{number}. {result.name}: {result.done}", width, subsequent_indent="   "):
        say(click.style(line, bold=True))
    if result.probes:
        outcomes = ", ".join(f"{count} {name}" for name, count in sorted(result.outcomes.items()))
        wrapped(
            _("{probes} probes ({outcomes}); {frames} frames outside").format(
                probes=result.probes, outcomes=outcomes, frames=result.frames
            ),
            indent=5,
        )
    for check in result.checks:
        text = check.name + (f" ({check.detail})" if check.detail else "")
        wrapped(
            text,
            indent=9,
            sign=_("ok") if check.ok else _("NO"),
            color="green" if check.ok else "red",
            bold=not check.ok,
        )
    for name, value in result.figures.items():
        wrapped(f"{name}: {value:.1f}" if value < 10 else f"{name}: {value:.0f}", indent=9)
    for leak in result.leaks[:5]:
        wrapped(leak, indent=11, sign=_("LEAK"), color="red", bold=True)
    verdict = (
        click.style(_("HELD"), fg="green", bold=True) if result.held else click.style(_("FAILED"), fg="red", bold=True)
    )
    say(f"     {verdict}")


def _explain_inspection(world: World, machine: Machine, say: Say) -> None:
    shells = world.look_around()
    say(_("\nThe laboratory keeps running. To open a shell on one of its hosts:"))
    for name, command in shells.items():
        if name != "end":
            say(f"  {name:<11} {command}")
    say(_("For example, on the client (disconnected and locked):"))
    program = render_client_command(machine.runtime_dir)
    for command in (f"{program} status", f"{program} start", f"nft list chain inet {names.BASE_TABLE} output"):
        say(f"  {shells['client']} {command}")
    say(_("To end the laboratory and everything in it:"))
    say(f"  {shells['end']}")


def show_table(results: list[StepResult], *, held: bool, took: float) -> None:
    """Show all steps as a table, and the sum."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=_("What was measured outside the machine"), title_justify="left")
    for name in (_("step"), _("probes"), _("frames judged"), _("leaks"), _("verdict")):
        table.add_column(name, justify="left" if name in {_("step"), _("verdict")} else "right")
    for result in results:
        verdict = f"[green]{_('held')}[/green]" if result.held else f"[bold red]{_('FAILED')}[/bold red]"
        table.add_row(
            result.name,
            str(result.probes),
            str(result.frames),
            str(len(result.leaks)) if result is not results[0] else "-",
            verdict,
        )
    console = Console()
    console.print()
    console.print(table)
    frames = sum(result.frames for result in results[1:])
    leaks = sum(len(result.leaks) for result in results)
    console.print(
        ngettext(
            "{frames} frames judged, {leaks} leak, {seconds:.0f} s.",
            "{frames} frames judged, {leaks} leaks, {seconds:.0f} s.",
            leaks,
        ).format(frames=frames, leaks=leaks, seconds=took),
        _("Every step held.") if held else _("Not every step held."),
    )


def summarize(results: list[StepResult], *, held: bool, took: float, real: bool) -> dict[str, object]:
    """The results as an object for JSON. real: whether the core was a real one."""
    return {
        "held": held,
        "seconds": round(took, 1),
        "core": "psiphon-tunnel-core" if real else "stand-in",
        "frames_judged": sum(result.frames for result in results[1:]),
        "leaks": sum(len(result.leaks) for result in results),
        "steps": [
            {
                **asdict(result),
                "outcomes": dict(result.outcomes),
                "kinds": dict(result.kinds),
                "held": result.held,
                "figures": {name: round(value, 1) for name, value in result.figures.items()},
            }
            for result in results
        ],
    }
