"""The commands of the installed service."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import click

from psiphon_vpn.cli import client, notify, rules, view
from psiphon_vpn.cli.update import update
from psiphon_vpn.errors import NotRootError
from psiphon_vpn.i18n import _


@click.command(help=_("Say whether this machine is locked and connected, and why."))
@click.option("--json", "as_json", is_flag=True, help=_("Print one JSON object for programs."))
@click.option("--watch", is_flag=True, help=_("Stay and show every change; Ctrl-C ends it."))
@click.pass_obj
def status(runtime_dir: Path, *, as_json: bool, watch: bool) -> int:
    """Print the status and return the exit code that belongs to it."""
    if watch:
        view.watch(runtime_dir, as_json=as_json)
        return 0
    found = view.find_status(runtime_dir)
    click.echo(view.render_json(found) if as_json else view.render_text(found))
    return view.find_exit_code(found)


def _make_command(name: str, help_text: str, done: Callable[[], str]) -> click.Command:
    @click.pass_obj
    def command(runtime_dir: Path) -> int:
        if os.geteuid() != 0:
            raise NotRootError(f"psiphon-vpn {name}")
        found = client.send_command(runtime_dir, name)
        click.echo(done())
        click.echo(view.render_text(found))
        return 0

    return click.Command(name, callback=command, help=help_text)


COMMANDS: Final = (
    status,
    rules.ruleset,
    notify.notify,
    update,
    _make_command(
        "start",
        _("Connect; the machine stays locked until the tunnel is checked."),
        lambda: _("The service is connecting."),
    ),
    _make_command(
        "stop",
        _("Disconnect; the machine stays locked until the next start."),
        lambda: _("The tunnel is closed."),
    ),
    _make_command(
        "restart",
        _("Disconnect and connect again, locked all the while."),
        lambda: _("The service is connecting anew."),
    ),
    _make_command(
        "reload",
        _("Read the configuration again, locked all the while."),
        lambda: _("The configuration has been read again."),
    ),
)
