# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""`servers`: the list of Psiphon's servers."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from psiphon_vpn import client
from psiphon_vpn.cli.config_edit import need_root
from psiphon_vpn.cli.config_place import read_settings
from psiphon_vpn.cli.given_proxy import ask_password, refuse_password
from psiphon_vpn.cli.server_lists import SUBCOMMANDS
from psiphon_vpn.errors import EXIT_FAILURE, UserError
from psiphon_vpn.i18n import _, ngettext
from psiphon_vpn.system.layout import Layout
from psiphon_vpn.system.next_step import Need, advise, need_set_up

if TYPE_CHECKING:
    from psiphon_vpn.servers.proxies import Proxy


@click.group(help=_("The list of Psiphon's servers."))
def servers() -> None:
    """A group of commands."""


@servers.command(
    help=_(
        "Fetch a newer server list through the open tunnel, or through the proxy that you give, verified; never by"
        " another way."
    ),
    short_help=_("Fetch a newer list through the open tunnel, verified."),
)
@click.option("--if-due", is_flag=True, help=_("Only if the list is old; says nothing while the tunnel is closed."))
@click.option(
    "--proxy",
    "proxy_url",
    metavar="URL",
    help=_(
        "Through this http or socks5 proxy, which sees the name of the list's host. The lock stays: a locked computer"
        " reaches a proxy on itself, and others through the open tunnel. Its password is asked for, or read from"
        " standard input."
    ),
)
@click.pass_obj
def refresh(runtime_dir: Path, *, if_due: bool, proxy_url: str | None) -> int:
    """Fetch through the tunnel or a proxy, and say what came of it."""
    need_root("servers refresh")
    if if_due and proxy_url is not None:
        raise click.UsageError(_("--if-due and --proxy exclude each other."))
    proxy = None if proxy_url is None else _read_proxy(proxy_url)
    if not if_due:
        need_set_up(runtime_dir, _not_fetched())
    from psiphon_vpn.servers.errors import QUESTIONS, ListError
    from psiphon_vpn.servers.profile import NONE, load_profile
    from psiphon_vpn.servers.refresh import NotNow
    from psiphon_vpn.servers.refresh import refresh as fetch_newer
    from psiphon_vpn.servers.store import ServerStore

    layout, name = Layout(), read_settings().servers
    if name == NONE:
        if not if_due:
            click.echo(_('No list is fetched: the configuration says servers = "none".'), err=True)
        return 0 if if_due else EXIT_FAILURE
    status: client.Status = {}
    if proxy is None:
        with contextlib.suppress(UserError):  # no service, no tunnel
            status = client.request_status(runtime_dir)
    store, profile, now = ServerStore(layout), load_profile(name, layout), datetime.now(UTC)
    fetch = functools.partial(fetch_newer, store, profile, status, only_if_due=if_due, now=now, proxy=proxy)
    try:
        done = fetch()
    except ListError as error:
        if if_due or error.flaw not in QUESTIONS:
            raise
        click.echo(f"{error.what}: {error.why}.", err=True)
        if not click.confirm(_("Use it all the same?"), default=False, err=True):
            click.echo(_("Nothing was changed."))
            return EXIT_FAILURE
        done = fetch(accepted=True)
    if isinstance(done, NotNow):
        if if_due:
            return 0
        advice = advise(Need.TUNNEL, layout, status=status)
        if status.get("state") == "OPEN":
            why = _("the tunnel's SOCKS proxy does not run")
        else:
            why = _("the tunnel is not open") + (f" ({advice.why})" if advice.why else "")
        raise UserError(_not_fetched(), why, advice.step)
    if done.changed or not if_due:
        count = done.new.entries
        text = ngettext("The list has {count} server.", "The list has {count} servers.", count).format(count=count)
        # In the log, where the timer's words come, nothing else says what this is about.
        came = _("A newer server list was fetched, and is in use.")
        click.echo(f"{came if done.changed else _('The list in use is the newest.')} {text}")
    return 0


def _not_fetched() -> str:
    return _("No newer server list was fetched")


def _read_proxy(url: str) -> Proxy:
    """The proxy of --proxy; its password is asked for, since everybody here sees a command line."""
    from psiphon_vpn.servers.proxies import find_proxy

    proxy = find_proxy(url)
    if proxy is None:
        raise click.UsageError(
            _(
                "--proxy must look like socks5://127.0.0.1:1080 or http://192.0.2.7:3128: with an address, since a name"
                " would have to be looked up, and a port."
            )
        )
    access = proxy.access
    refuse_password(access.password)
    if not access.user:
        return proxy
    return replace(proxy, access=replace(access, password=ask_password()))


for _command in SUBCOMMANDS:
    servers.add_command(_command)

COMMANDS: Final = (servers,)
