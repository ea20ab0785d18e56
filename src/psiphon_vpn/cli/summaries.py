# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The line of each command in the list of all commands, so that the list imports none of them.

A test compares these lines with the commands' own.
"""

from __future__ import annotations

from typing import Final

import click

from psiphon_vpn.cli.quick_options import QUICK
from psiphon_vpn.i18n import _

SHORT: Final = {
    "bench": _("Measure how fast it is, beside the bare tunnel program."),
    "bridge": _("Let this machine and the guests on a bridge meet, or not."),
    "bundle": _("Put tunnel program and server list into a file for others."),
    "diagnose": _("Check everything, and say what to do if it is wrong."),
    "leaktest": _("Try every known leak in every state, in a laboratory."),
    "log": _("Say in plain words what the service did, and why."),
    "notify": _("Show desktop notifications, for a unit of your session."),
    "pin-core": _("Maintainers: complete an entry of the manifest."),
    "region": _("List the countries for your traffic's exit, or set one."),
    "release": _("Open the network until the next start or boot."),
    "setup": _("Lock and connect, after a package has brought the program."),
    "uninstall": _("Remove the service and undo all changes; opens the network."),
    "update": _("Install or update the tunnel program, verified."),
    "verify": _("Compare every installed file with what was installed."),
}
"""Of commands whose help is longer."""
HELP: Final = {
    "config": _("Show and change the settings."),
    "demo": _("Show in a laboratory, on real packets, that nothing leaks."),
    "install": _("Install the service on this machine, lock it, and connect."),
    "package": _("Build the packages for dpkg and rpm."),
    "rules": _("What may pass, and why."),
    "ruleset": _("Print the rules of the lock as text that 'nft -f' loads."),
    "servers": _("The list of Psiphon's servers."),
    "test": _("Run every linter, the type checker and every test."),
}
"""Of commands that have no other help. click shortens it where the terminal is narrow."""


def make_summaries() -> dict[str, click.Command]:
    """Commands that do nothing and have these lines, without the hidden ones and those of the program's own module."""
    quick = (
        click.Command(command.name, help=command.text(), short_help=command.short() if command.short else None)
        for command in QUICK
        if not command.hidden
    )
    short = (click.Command(name, short_help=text) for name, text in SHORT.items())
    whole = (click.Command(name, help=text) for name, text in HELP.items())
    return {command.name or "": command for command in (*quick, *short, *whole)}
