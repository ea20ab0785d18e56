"""The demonstration: builds the laboratory, tells the story while it happens, and shows a table at the end."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import click

from psiphon_lab.machine import Machine
from psiphon_lab.story import Story
from psiphon_lab.trial import StepResult, TunnelServer
from psiphon_lab.tunnel_ends import RealPrograms, open_tunnel
from psiphon_lab.world import World
from psiphon_vpn.i18n import _, ngettext
from psiphon_vpn.policy import names

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
    with _open_stage(core, server) as (world, machine, tunnel_server):
        say(click.wrap_text(_introduce(core), find_width()))
        story = Story(
            world,
            machine,
            tunnel_server,
            announce=lambda text: say("\n" + click.wrap_text(text, find_width(), "  ", "  ")),
        )
        for number, result in enumerate(story.tell(), start=1):
            results.append(result)
            tell_step(number, result, say)
        took = time.monotonic() - begin
        if keep:
            world.keep()
            machine.keep()
            tunnel_server.keep()
    # A story that broke off has fewer steps, and its last one did not hold.
    held = bool(results) and all(result.held for result in results)
    if json_output:
        click.echo(json.dumps(summarize(results, held=held, took=took, real=core is not None)))
    else:
        show_table(results, held=held, took=took)
    if keep:
        _tell_how_to_look(world, machine, say)
    return 0 if held else 1


@contextlib.contextmanager
def _open_stage(core: Path | None, server: Path | None) -> Iterator[tuple[World, Machine, TunnelServer]]:
    with contextlib.ExitStack() as stack:
        real = RealPrograms(core=core, server=server) if core is not None and server is not None else None
        tunnel = stack.enter_context(open_tunnel(real))
        machine = stack.enter_context(Machine(tunnel.world, core=tunnel.core, entry=lambda: tunnel.server.entry))
        yield tunnel.world, machine, tunnel.server


def _introduce(core: Path | None) -> str:
    if core is not None:
        return _("The real service, with a real psiphon-tunnel-core and psiphond, in a laboratory on this machine.")
    return _(
        "The real service in a laboratory on this machine. The tunnel core and its server are the laboratory's "
        "stand-ins (test instruments); kernel, rules, routes, packets and frames are real."
    )


def find_width() -> int:
    """How wide texts may be: as the terminal, within reason."""
    return max(40, min(shutil.get_terminal_size().columns, 100))


def announce(text: str, say: Say) -> None:
    """Show what is about to be done."""
    say("\n" + click.wrap_text(text, find_width(), "  ", "  "))


def tell_step(number: int, result: StepResult, say: Say) -> None:
    """Show a step that has been judged."""
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


def _tell_how_to_look(world: World, machine: Machine, say: Say) -> None:
    shells = world.look_around()
    say(_("\nThe laboratory is left standing. To open a shell on one of its hosts:"))
    for name, command in shells.items():
        if name != "end":
            say(f"  {name:<11} {command}")
    say(_("On the client, for example (the connection was stopped; everything is locked):"))
    program = f"{sys.executable} -m psiphon_vpn --runtime-dir {machine.runtime_dir}"
    for command in (f"{program} status", f"{program} start", f"nft list chain inet {names.BASE_TABLE} output"):
        say(f"  {shells['client']} {command}")
    say(_("To end it and everything in it:"))
    say(f"  {shells['end']}")


def show_table(results: list[StepResult], *, held: bool, took: float) -> None:
    """Show all steps as a table, and what they come to."""
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
    """The same for programs. real: whether the tunnel core was no stand-in."""
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
