# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""`bridge`: root's list of bridges with guests that this machine may talk to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import click

from psiphon_vpn.errors import DaemonDownError, NotRootError, UserError
from psiphon_vpn.i18n import _
from psiphon_vpn.system.layout import Layout
from psiphon_vpn.system.next_step import need_set_up


@click.group(
    help=_("Allow or forbid this machine and the guests on a bridge to reach each other."),
    short_help=_("Let this machine and the guests on a bridge meet, or not."),
)
def bridge() -> None:
    """A group of commands."""


@bridge.command(
    help=_("Let this machine and the guests on a bridge reach each other, and nobody else."),
    short_help=_("Let this machine and a bridge's guests reach each other."),
)
@click.argument("name")
@click.option("--yes", is_flag=True, help=_("Do not ask."))
@click.pass_obj
def allow(runtime_dir: Path, *, name: str, yes: bool) -> int:
    """Write the list, load the guards, and have the service read the list."""
    _need_root("bridge allow")
    need_set_up(runtime_dir, _("Nothing was changed"))
    from psiphon_vpn.system import bridging
    from psiphon_vpn.system.linux_platform import open_platform

    checked = bridging.check_name(name)
    for line in (
        _("This computer and the guests on {name} can then reach each other: programs here can connect to"),
        _("containers and virtual machines there, and those can ask this computer for an address and for names."),
        _("Programs on those guests see this computer's address on the bridge. The tunnel reconnects for this."),
        _("Nothing of this leaves through a port that is not a guest's. But a guest with its own network, for example"),
        _("a network card, can pass on what it receives: allow only bridges with guests that you trust."),
    ):
        click.echo(line.format(name=checked), err=True)
    if not yes and not click.confirm(_("Go on?"), default=False, err=True):
        raise click.Abort
    done = bridging.allow(open_platform(), checked, reread=lambda: _reread(runtime_dir))
    text = _("{name} is allowed.") if done else _("{name} was allowed already; nothing was changed.")
    click.echo(text.format(name=checked))
    return _show(runtime_dir)


@bridge.command(
    help=_("Forbid it again: this machine and the guests on a bridge no longer reach each other."),
    short_help=_("Forbid it again."),
)
@click.argument("name")
@click.pass_obj
def deny(runtime_dir: Path, *, name: str) -> int:
    """Undo `allow`."""
    _need_root("bridge deny")
    need_set_up(runtime_dir, _("Nothing was changed"))
    from psiphon_vpn.system import bridging
    from psiphon_vpn.system.linux_platform import open_platform

    checked = bridging.check_name(name)
    done = bridging.deny(open_platform(), checked, reread=lambda: _reread(runtime_dir))
    text = _("{name} is no longer allowed.") if done else _("{name} was not allowed.")
    click.echo(text.format(name=checked))
    return _show(runtime_dir)


@bridge.command("list", help=_("Show the allowed bridges, and the state of each."))
@click.pass_obj
def list_bridges(runtime_dir: Path) -> int:
    """Show what the service reports; without it, only the list."""
    return _show(runtime_dir)


def _need_root(command: str) -> None:
    if os.geteuid() != 0:
        raise NotRootError(f"psiphon-vpn {command}")


def _reread(runtime_dir: Path) -> None:
    from psiphon_vpn import client

    try:
        client.send_command(runtime_dir, "reload")
    except DaemonDownError:
        return  # it reads the list when it starts


def _show(runtime_dir: Path) -> int:
    from psiphon_vpn import client
    from psiphon_vpn.network.bridges import load_bridges

    try:
        reported = client.request_status(runtime_dir).get("bridges")
    except UserError:
        reported = None
    if isinstance(reported, list):
        lines = [
            f"{item.get('name')}: {item.get('sentence')}"
            + (f". {item.get('next_step')}" if item.get("state") != "in_force" else "")
            for item in reported
            if isinstance(item, dict)
        ]
    else:
        text = _("{name}: allowed; the service does not report its state")
        lines = [text.format(name=name) for name in load_bridges(Layout().bridges)]
    click.echo("\n".join(lines) if lines else _("No bridge is allowed."))
    return 0


COMMANDS: Final = (bridge,)
