# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""`demo --system`: the service on a whole system, from its installation to its removal."""

from __future__ import annotations

import json
import time

import click

from psiphon_lab.booted.clone import fetch_wheels
from psiphon_lab.booted.demo_steps import SystemDemoSteps
from psiphon_lab.booted.obstacles import find_obstacle
from psiphon_lab.booted.session import open_session
from psiphon_lab.booted.trees import DEBIAN_12, build_tree
from psiphon_lab.demo import announce, find_width, show_step, show_table, summarize
from psiphon_lab.namespace import LabError
from psiphon_lab.step import StepResult
from psiphon_vpn.errors import UserError
from psiphon_vpn.i18n import _


def run_system_demo(*, json_output: bool) -> int:
    """Run it.

    Args:
        json_output: one JSON object on standard output, and nothing else there.

    Returns:
        The exit code: 0 only if every step held.

    Raises:
        UserError: no system can be booted here.
    """

    def say(text: str) -> None:
        click.echo(text, err=json_output)

    what = _("The demonstration cannot start")
    if (obstacle := find_obstacle()) is not None:
        raise UserError(what, obstacle, _("Try it on a Debian 12 machine, or without --system."))
    begin = time.monotonic()
    try:
        tree, wheels = build_tree(DEBIAN_12, say=say), fetch_wheels(say=say)
    except LabError as error:
        raise UserError(what, str(error), _("Check the network and run it again.")) from error
    results: list[StepResult] = []
    with open_session(tree, wheels) as session:
        say(click.wrap_text(_introduce(), find_width()))
        steps = SystemDemoSteps(session, announce=lambda text: announce(text, say))
        for number, result in enumerate(steps.play(), start=1):
            results.append(result)
            show_step(number, result, say)
    took = time.monotonic() - begin
    held = bool(results) and all(result.held for result in results)
    if json_output:
        click.echo(json.dumps(summarize(results, held=held, took=took, real=False)))
    else:
        show_table(results, held=held, took=took)
    return 0 if held else 1


def _introduce() -> str:
    return _(
        "The real service on a real Debian 12, booted with systemd in a laboratory on this machine, with "
        "NetworkManager and systemd-resolved. The tunnel program and its server are the laboratory's stand-ins "
        "(test instruments)."
    )
