"""Commands that change the system: install, uninstall, release, and the two that packages call.

This module has their options only. `managing` does the work; it is imported when a command runs.
"""

from __future__ import annotations

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


@click.command(help=_("Install the service on this machine, lock it, and connect."))
@click.option(
    "--core-file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False, resolve_path=True),
    help=_("A psiphon-tunnel-core that you have as a file; its SHA-256 is needed too."),
)
@click.option("--sha256", help=_("The SHA-256 that the core's file must have, from a source that you trust."))
@click.option("--core-url", help=_("Download the core from here; checked like --core-file."))
@click.option(
    "--download-core", is_flag=True, help=_("Download the core that this version knows, before the lock closes.")
)
@_YES
@_CUT_REMOTE
@_DRY_RUN
def install(**options: Any) -> int:
    """Install from a clone."""
    from psiphon_vpn.cli import managing

    return managing.install(find_commands(), **options)


@click.command(help=_("Remove the service and undo every change that it made; this opens the network."))
@_YES
@_DRY_RUN
def uninstall(**options: Any) -> int:
    """Undo the journal."""
    from psiphon_vpn.cli import managing

    return managing.uninstall(**options)


@click.command(help=_("Open the network until the next start or boot, without uninstalling."))
def release() -> int:
    """Open, after a word was typed."""
    from psiphon_vpn.cli import managing

    return managing.release()


@click.command("system-configure", hidden=True)
@_CUT_REMOTE
def system_configure(**options: Any) -> int:
    """Configure, for a package whose files are in place; asks nothing."""
    from psiphon_vpn.cli import managing

    return managing.system_configure(**options)


@click.command("system-deconfigure", hidden=True)
def system_deconfigure() -> int:
    """Undo the configuration, for a package before its files go. Opens the network last."""
    from psiphon_vpn.cli import managing

    return managing.system_deconfigure()


COMMANDS: Final = (install, uninstall, release, system_configure, system_deconfigure)
