"""The commands of the installed service."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import click

from psiphon_vpn import client
from psiphon_vpn.accounts import find_group, find_user
from psiphon_vpn.cli import notify, rules, view
from psiphon_vpn.cli.update import update
from psiphon_vpn.errors import NotRootError
from psiphon_vpn.i18n import _
from psiphon_vpn.system.config_owner import restore_owner
from psiphon_vpn.system.layout import GROUP, USER, Layout
from psiphon_vpn.system.platform import Account


@click.command(help=_("Say whether this machine is locked and connected, and why."))
@click.option("--json", "as_json", is_flag=True, help=_("Print one JSON object for programs."))
@click.option("--watch", is_flag=True, help=_("Stay and show every change; Ctrl-C ends it."))
@click.pass_obj
def status(runtime_dir: Path, *, as_json: bool, watch: bool) -> int:
    """Print the status and return its exit code."""
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
        if name in {"restart", "reload"}:
            restore_configuration_owner(runtime_dir)
        found = client.send_command(runtime_dir, name)
        click.echo(done())
        click.echo(view.render_text(found))
        return 0

    return click.Command(name, callback=command, help=help_text)


def restore_configuration_owner(runtime_dir: Path) -> None:
    """Restore owner and mode of the installed service's configuration, and say so."""
    layout = Layout()
    # Another runtime directory belongs to a laboratory's service, which must not touch the installed one.
    user, gid = find_user(USER), find_group(GROUP)
    if runtime_dir != layout.runtime_dir or user is None or gid is None:
        return
    try:
        if restore_owner(layout.config, Account(uid=user.uid, gid=gid)):
            click.echo(
                _("{path} belongs to the service again, so that it can read it.").format(path=layout.config), err=True
            )
    except OSError as error:
        click.echo(f"{layout.config}: {error.strerror}", err=True)


@click.command(help=_("Lock this machine if it is not, start the service if it does not run, and connect."))
@click.option(
    "--yes-cut-remote-sessions",
    "cut_remote",
    is_flag=True,
    help=_("Agree that connections from outside end, if this machine is open now."),
)
@click.pass_obj
def start(runtime_dir: Path, *, cut_remote: bool) -> int:
    """Connect. On an installed machine this also ends `release`."""
    if os.geteuid() != 0:
        raise NotRootError("psiphon-vpn start")
    restore_configuration_owner(runtime_dir)
    # Another runtime directory belongs to a laboratory's service, which must not touch the installed one.
    if runtime_dir == Layout().runtime_dir:
        from psiphon_vpn.cli.managing import start_if_stopped
        from psiphon_vpn.system.linux_platform import open_platform

        start_if_stopped(open_platform(), cut_remote=cut_remote)
    found = client.send_command(runtime_dir, "start")
    click.echo(_("The service is connecting."))
    click.echo(view.render_text(found))
    return 0


@click.command("system-sleep", hidden=True)
@click.argument("word", type=click.Choice(["begin", "end"]))
@click.pass_obj
def system_sleep(runtime_dir: Path, *, word: str) -> int:
    """Announce a sleep or its end, for psiphon-sleep.service. After "begin" returns, the kernel holds no lease."""
    if os.geteuid() != 0:
        raise NotRootError("psiphon-vpn system-sleep")
    name = {"begin": "sleep-begins", "end": "sleep-ended"}[word]
    client.send_command(runtime_dir, name, timeout=client.SLEEP_SECONDS)
    return 0


COMMANDS: Final = (
    status,
    rules.ruleset,
    rules.rules,
    start,
    system_sleep,
    notify.notify,
    update,
    _make_command(
        "stop",
        _("Disconnect; the machine stays locked until the next start."),
        lambda: _("The tunnel is closed."),
    ),
    _make_command(
        "restart",
        _("Disconnect and connect again, locked meanwhile."),
        lambda: _("The service is connecting again."),
    ),
    _make_command(
        "reload",
        _("Read the configuration again, locked meanwhile."),
        lambda: _("The configuration has been read again."),
    ),
)
