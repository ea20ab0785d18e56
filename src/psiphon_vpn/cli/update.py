# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""`update`: installs or updates the tunnel core; never opens the lock."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from psiphon_vpn import client
from psiphon_vpn.cli.given_proxy import complete_url
from psiphon_vpn.errors import EXIT_FAILURE, DaemonDownError, NotRootError, UserError
from psiphon_vpn.i18n import _

if TYPE_CHECKING:
    import ssl

    from psiphon_vpn.core.fetch import Limits, Progress
    from psiphon_vpn.core.obtain import CoreRequest
    from psiphon_vpn.core.record import CoreRecord
    from psiphon_vpn.core.store import CoreChange, CoreStore, StagedCore
    from psiphon_vpn.system.layout import Layout

_SHA256_DIGITS: Final = 64


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """The command's dialogue with the user.

    Attributes:
        runtime_dir: the daemon's runtime directory.
        assume_yes: do not ask.
        brief: leave out what the core is and when it starts; the caller says what matters.
    """

    runtime_dir: Path
    assume_yes: bool
    brief: bool = False


def _check_sha256(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    if value is None:
        return None
    digits = value.strip().lower()
    if len(digits) != _SHA256_DIGITS or set(digits) - set("0123456789abcdef"):
        raise click.BadParameter(_("a SHA-256 has 64 hexadecimal digits."))
    return digits


@click.command(
    help=_("Install or update the tunnel program, verified; the machine stays locked meanwhile."),
    short_help=_("Install or update the tunnel program, verified."),
)
@click.option(
    "--core-file", type=click.Path(path_type=Path, dir_okay=False), help=_("Take this file, instead of downloading.")
)
@click.option("--core-url", metavar="URL", help=_("Download from this https address instead."))
@click.option(
    "--sha256", metavar="HEX", callback=_check_sha256, help=_("The SHA-256 that the tunnel program must have.")
)
@click.option("--via-tunnel", is_flag=True, help=_("Download through the open tunnel's own SOCKS proxy."))
@click.option(
    "--proxy",
    metavar="URL",
    help=_(
        "Download through this http, https or socks5 proxy. Its password is asked for, or read from standard input."
    ),
)
@click.option("--rollback", is_flag=True, help=_("Go back to the previous tunnel program."))
@click.option("--allow-older", is_flag=True, help=_("Also install a tunnel program that is older than the one in use."))
@click.option("--yes", is_flag=True, help=_("Do not ask."))
@click.pass_obj
def update(
    runtime_dir: Path,
    *,
    core_file: Path | None,
    core_url: str | None,
    sha256: str | None,
    via_tunnel: bool,
    proxy: str | None,
    rollback: bool,
    allow_older: bool,
    yes: bool,
) -> int:
    """Update the core of this machine."""
    downloads = bool(core_url or via_tunnel or proxy)
    if rollback and (core_file or downloads or sha256 or allow_older):
        raise click.UsageError(_("--rollback goes with --yes only."))
    if core_file and downloads:
        raise click.UsageError(_("--core-file downloads nothing: leave the other options out."))
    if via_tunnel and proxy:
        raise click.UsageError(_("--via-tunnel and --proxy exclude each other."))
    if os.geteuid() != 0:
        raise NotRootError("psiphon-vpn update")
    from psiphon_vpn.system.next_step import need_set_up

    need_set_up(runtime_dir, _("The tunnel program is not installed"))
    given = None if proxy is None else complete_url(proxy)
    from psiphon_vpn.core.obtain import CoreRequest
    from psiphon_vpn.core.store import CoreStore
    from psiphon_vpn.system.layout import Layout

    store = CoreStore(Layout())
    talk = Conversation(runtime_dir=runtime_dir, assume_yes=yes)
    if rollback:
        return roll_back(store, talk)
    request = CoreRequest(
        file=core_file,
        url=core_url,
        sha256=sha256,
        allow_older=allow_older,
        proxy=find_tunnel_proxy() if via_tunnel else given,
    )
    return bring_core(store, request, talk, via_tunnel=via_tunnel)


def bring_core(
    store: CoreStore,
    request: CoreRequest,
    talk: Conversation,
    *,
    via_tunnel: bool = False,
    tls: ssl.SSLContext | None = None,
    limits: Limits | None = None,
) -> int:
    """Get the wanted core, show what it is, activate it and have the daemon start it.

    Args:
        store: for the core.
        request: the wanted core.
        talk: dialogue with the user.
        via_tunnel: download through the tunnel.
        tls: trusted certificates for the download; None: this system's.
        limits: bounds of a download.

    Returns:
        The exit code.

    Raises:
        UserError: why not. The core in use and the lock are unchanged.
    """
    from psiphon_vpn.core.obtain import find_up_to_date, obtain

    if (present := find_up_to_date(store, request)) is not None:
        if not talk.brief:
            click.echo(_("The tunnel program is up to date: revision {revision}.").format(revision=present.revision))
        return 0
    if request.needs_network:
        _check_way_out(talk.runtime_dir, via_tunnel=via_tunnel)
    with (
        show_progress() as progress,
        obtain(store, request, tls=tls, limits=limits, progress=progress.advance) as staged,
    ):
        progress.finish()
        for line in _describe_warnings(staged) if talk.brief else _describe(staged):
            click.echo(line)
        if not _confirm(talk, _("Use this tunnel program from now on?")):
            click.echo(_("Nothing was changed."))
            return EXIT_FAILURE
        change = store.activate(staged)
    return _finish(change, talk)


def roll_back(store: CoreStore, talk: Conversation) -> int:
    """Go back to the previous core; raises UserError if there is none, or it is not valid."""
    previous = store.read_previous()
    if previous is not None:
        click.echo(_("Back to:   {core}").format(core=_name(previous)))
        if not _confirm(talk, _("An older tunnel program may have known weaknesses. Go back to it?")):
            click.echo(_("Nothing was changed."))
            return EXIT_FAILURE
    return _finish(store.rollback(), talk)


def _check_way_out(runtime_dir: Path, *, via_tunnel: bool) -> None:
    """Fail at once if nothing can get out, instead of after a minute of trying."""
    try:
        status = client.request_status(runtime_dir)
    except UserError as error:
        if not via_tunnel:
            return  # no status: the attempt will show it
        raise _no_way(_("the tunnel is not open: {why}").format(why=error.why), None) from error
    if status.get("state") != "OPEN" and (via_tunnel or status.get("locked") is not False):
        raise _no_way(_("this machine is locked, and the tunnel is not open"), status)


def _no_way(why: str, status: client.Status | None) -> UserError:
    from psiphon_vpn.system.layout import Layout
    from psiphon_vpn.system.next_step import Need, advise

    file = _("Or bring the tunnel program as a file: sudo psiphon-vpn update --core-file PATH --sha256 HEX")
    step = advise(Need.TUNNEL, Layout(), status=status).step
    return UserError(_("The tunnel program was not downloaded"), why, f"{step.rstrip('.')}. {file}")


def find_tunnel_proxy(layout: Layout | None = None) -> str:
    """The tunnel's own SOCKS proxy. It resolves names at the far end, so none is looked up here."""
    from psiphon_vpn.config import Settings
    from psiphon_vpn.editing.installed import read_installed_settings
    from psiphon_vpn.system.layout import Layout

    settings = Settings()
    with contextlib.suppress(UserError):
        settings = read_installed_settings(layout or Layout())
    return f"socks5://127.0.0.1:{settings.socks_port}"


def _name(record: CoreRecord | None) -> str:
    if record is None:
        return _("none")
    revision = record.revision or _("unknown revision")
    return f"{revision} (SHA-256 {record.sha256[:16]}...)"


def _describe(staged: StagedCore) -> Iterator[str]:
    new = staged.record
    yield _("Source:    {source}").format(source=client.clean_text(new.source))
    yield _("Revision:  {revision}").format(revision=new.revision or _("unknown"))
    yield _("SHA-256:   {sha256}").format(sha256=new.sha256)
    yield _("In use:    {old} -> {new}").format(old=_name(staged.old), new=_name(new))
    yield from _describe_warnings(staged)


def _describe_warnings(staged: StagedCore) -> Iterator[str]:
    for warning in staged.warnings:
        yield click.style(_("Note:      {warning}").format(warning=warning), fg="yellow")


def _confirm(talk: Conversation, question: str) -> bool:
    if talk.assume_yes:
        return True
    if not sys.stdin.isatty():
        raise UserError(
            _("Nothing was changed"), _("it cannot ask without a terminal"), _("Run it in a terminal, or with --yes.")
        )
    return click.confirm(question, default=True)


def _finish(change: CoreChange, talk: Conversation) -> int:
    """Have the daemon start the new core, unless the user has stopped the connection."""
    name = click.style(_("The tunnel program in use is {core}.").format(core=_name(change.new)), fg="green", bold=True)
    try:
        status = client.request_status(talk.runtime_dir)
        if status.get("intent") == "connected":
            client.send_command(talk.runtime_dir, "restart")
            when = _("The service is starting it now; the machine stays locked until its tunnel is checked.")
        else:
            when = _("It starts when you connect: sudo psiphon-vpn start")
    except DaemonDownError as error:
        when = _("It starts as soon as the service runs.") + " " + error.next_step
    if not talk.brief:
        click.echo(name)
        click.echo(when)
    return 0


class _Bar:
    """The progress of a download: a bar in a terminal, nothing elsewhere."""

    def __init__(self, advance: Progress, finish: Callable[[], None]) -> None:
        self.advance = advance
        self.finish = finish


@contextlib.contextmanager
def show_progress() -> Iterator[_Bar]:
    """Show the progress of a download inside the block, in a terminal."""
    if not sys.stderr.isatty():
        yield _Bar(lambda _done, _total: None, lambda: None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    bar = Progress(
        BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(), console=Console(stderr=True)
    )
    task = bar.add_task("", start=True)
    shown = False

    def advance(done: int, total: int | None) -> None:
        nonlocal shown
        if not shown:
            bar.start()
            shown = True
        bar.update(task, completed=done, total=total)

    try:
        yield _Bar(advance, bar.stop)
    finally:
        bar.stop()


COMMANDS: Final = (update,)
