# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands that change the system: install, setup, uninstall, release, and the two that packages call.

This module has their options only. `managing` and `setting_up` do the work; they are imported when a command runs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from psiphon_vpn.cli.tree import find_commands
from psiphon_vpn.i18n import _

_CUT_REMOTE: Final = click.option(
    "--yes-cut-remote-sessions",
    "cut_remote",
    is_flag=True,
    help=_("Agree that connections from outside end, including yours."),
)
_YES: Final = click.option("--yes", is_flag=True, help=_("Do not ask."))
_DRY_RUN: Final = click.option("--dry-run", is_flag=True, help=_("Only show every change, as a command that makes it."))


_PROVISIONS: Final = (
    click.option(
        "--bundle",
        type=click.Path(path_type=Path, exists=True, dir_okay=False, resolve_path=True),
        help=_("A file that 'psiphon-vpn bundle' has made: the tunnel program, the server list, or both."),
    ),
    click.option(
        "--core-file",
        type=click.Path(path_type=Path, exists=True, dir_okay=False, resolve_path=True),
        help=_("A psiphon-tunnel-core that you have as a file; with --sha256, if this version does not know it."),
    ),
    click.option("--sha256", help=_("The SHA-256 that the tunnel program must have, from a source that you trust.")),
    click.option("--core-url", help=_("Download the tunnel program from here; checked like --core-file.")),
    click.option(
        "--download",
        "--download-core",
        "download",
        is_flag=True,
        help=_("Download what is missing, tunnel program and server list, before the lock closes; without a question."),
    ),
    click.option(
        "--offline",
        is_flag=True,
        help=_(
            "Lock also without a tunnel program or a server list: offline until you bring them. Without a question."
        ),
    ),
    click.option(
        "--yes",
        is_flag=True,
        help=_("Do not ask. If something is missing then, nothing is changed, except with --offline."),
    ),
    _CUT_REMOTE,
    _DRY_RUN,
)


def _with_provisions(command: Callable[..., int]) -> Callable[..., int]:
    """Give a command the options of `install` and `setup`."""
    for option in reversed(_PROVISIONS):
        command = option(command)
    return command


@click.command(help=_("Install the service on this machine, lock it, and connect."))
@_with_provisions
def install(**options: Any) -> int:
    """Install from a clone."""
    from psiphon_vpn.cli import setting_up

    return setting_up.install(find_commands(), **options)


@click.command(
    help=_(
        "Lock this machine and connect, after a package has brought the program. Later: bring what is missing "
        "(--bundle), or restore what somebody changed. You can run it again at any time, and it opens nothing."
    ),
    short_help=_("Lock and connect, after a package has brought the program."),
)
@_with_provisions
def setup(**options: Any) -> int:
    """Set up what a package has installed."""
    from psiphon_vpn.cli import setting_up

    return setting_up.setup(**options)


@click.command(
    help=_("Remove the service and undo every change that it made; this opens the network."),
    short_help=_("Remove the service and undo all changes; opens the network."),
)
@_YES
@_DRY_RUN
def uninstall(**options: Any) -> int:
    """Undo the journal."""
    from psiphon_vpn.cli import managing

    return managing.uninstall(**options)


@click.command(
    help=_("Open the network until the next start or boot, without uninstalling."),
    short_help=_("Open the network until the next start or boot."),
)
def release() -> int:
    """Open, after a word was typed."""
    from psiphon_vpn.cli import managing

    return managing.release()


@click.command("system-configure", hidden=True)
@_CUT_REMOTE
def system_configure(**options: Any) -> int:
    """Configure, for a package whose files are in place; asks nothing."""
    from psiphon_vpn.cli import setting_up

    return setting_up.system_configure(**options)


@click.command("system-deconfigure", hidden=True)
def system_deconfigure() -> int:
    """Undo the configuration, for a package before its files go. Opens the network last."""
    from psiphon_vpn.cli import setting_up

    return setting_up.system_deconfigure()


COMMANDS: Final = (install, setup, uninstall, release, system_configure, system_deconfigure)
