# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""`log`: what the service did, and why, in plain words, from systemd's journal."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import click

from psiphon_vpn.errors import EXIT_NOT_ROOT, UserError
from psiphon_vpn.i18n import _

if TYPE_CHECKING:
    from psiphon_vpn.diagnose.log_lines import LogWriter

READ_SECONDS: Final = 60.0
NO_RIGHTS: Final = ("not seeing messages from", "insufficient permissions", "Permission denied")
"""Parts of what journalctl says to a user who may not read the whole journal; it then ends with 0 or 1."""
NO_JOURNAL: Final = "No journal files were found"


@click.command(
    help=_("Say what the service did, and why: systemd's journal in plain words."),
    short_help=_("Say in plain words what the service did, and why."),
)
@click.option("-f", "--follow", is_flag=True, help=_("Stay and show each new line; Ctrl-C ends it."))
@click.option(
    "-n", "--lines", type=click.IntRange(1, 100_000), default=50, show_default=True, help=_("How many lines at most.")
)
def log(*, follow: bool, lines: int) -> int:
    """Print the log."""
    from psiphon_vpn.diagnose.log_lines import LogWriter
    from psiphon_vpn.run import follow_lines

    writer = LogWriter(shutil.get_terminal_size().columns)
    found = _read(lines)
    shown = _show(found, writer)
    if not shown and not follow:
        from psiphon_vpn.system.layout import Layout
        from psiphon_vpn.system.next_step import Need, advise
        from psiphon_vpn.system.set_up import SetUp, find_set_up

        layout = Layout()
        click.echo(_("The log says nothing about the service yet."))
        if find_set_up(layout) is not SetUp.YES:
            click.echo(advise(Need.SERVICE, layout).sentence)
    if follow:
        # From the last entry that was read on, so that none is lost or shown twice.
        begin = [f"--after-cursor={cursor}"] if (cursor := _find_cursor(found)) else ["--lines=0"]
        with contextlib.suppress(KeyboardInterrupt), follow_lines([*_command(), "--follow", *begin]) as coming:
            _show(coming, writer)
    return 0


def _command() -> list[str]:
    from psiphon_vpn.diagnose.log_query import list_matches

    return ["journalctl", "--output=json", "--no-pager", *list_matches()]


def _read(lines: int) -> list[str]:
    """The last entries, the oldest first.

    Raises:
        UserError: there is no journal, or this user may not read it.
    """
    from psiphon_vpn.run import CommandError, run

    what, without = _("Cannot read the log"), _("Read the log of this system in its own way.")
    try:
        done = run([*_command(), f"--lines={lines}"], ok=(0, 1), timeout=READ_SECONDS)
    except CommandError as error:
        if error.returncode is None and not shutil.which("journalctl"):
            raise UserError(what, _("this system has no journal of systemd"), without) from error
        raise UserError(what, error.why, _("Run it again with sudo in front.")) from error
    if os.geteuid() != 0 and any(text in done.stderr for text in NO_RIGHTS):
        raise UserError(
            what,
            _("only root and the members of the groups systemd-journal and adm may"),
            _("Run it again with sudo in front."),
            exit_code=EXIT_NOT_ROOT,
        )
    if NO_JOURNAL in done.stderr:
        raise UserError(what, _("the journal of systemd is empty, or it does not run here"), without)
    return done.stdout.splitlines()


def _show(entries: Iterable[str], writer: LogWriter) -> int:
    from psiphon_vpn.diagnose.log_lines import read_entry

    shown = 0
    for entry in entries:
        if (line := read_entry(entry)) is not None:
            shown += 1
            for text in writer.write(line):
                click.echo(click.style(text, fg="red") if line.bad else text)
    return shown


def _find_cursor(entries: list[str]) -> str | None:
    try:
        cursor = json.loads(entries[-1])["__CURSOR"]
    except (IndexError, ValueError, KeyError, TypeError):
        return None
    return cursor if isinstance(cursor, str) else None


COMMANDS: Final = (log,)
