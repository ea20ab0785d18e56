# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""`bundle`: puts what this machine's tunnel needs into one file, for somebody else's machine."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from psiphon_vpn.errors import UserError
from psiphon_vpn.i18n import _

if TYPE_CHECKING:
    from psiphon_vpn.system.layout import Layout


@click.command(
    help=_("Put this machine's tunnel program and server list into one file, for another computer."),
    short_help=_("Put tunnel program and server list into a file for others."),
)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
def bundle(*, file: Path) -> int:
    """Make a bundle. Needs no root, since what is in it is no secret: everybody may read it here."""
    from psiphon_vpn.system.layout import Layout

    for line in write_bundle(Layout(), file):
        click.echo(line)
    return 0


def write_bundle(layout: Layout, path: Path) -> list[str]:
    """Write a bundle of what is in use.

    Returns:
        Sentences about it.

    Raises:
        UserError: there is nothing to put in, or the file cannot be written.
    """
    from psiphon_vpn.core.store import CoreStore
    from psiphon_vpn.servers.bundle import make_bundle
    from psiphon_vpn.servers.store import ServerStore

    core = server_list = None
    said = []
    if layout.core_record.exists():
        # As every start checks it: a damaged one is not handed on.
        record = CoreStore(layout).check_current()
        core = layout.core_binary.read_bytes()
        said.append(_("Tunnel program: SHA-256 {sha256}").format(sha256=record.sha256))
    if (stored := ServerStore(layout).open_current()) is not None and stored[0].signed:
        server_list = stored[1]
        said.append(_("Server list: {count} servers, signed").format(count=stored[0].entries))
    if core is None and server_list is None:
        from psiphon_vpn.system.next_step import Need, advise

        advice = advise(Need.SERVERS, layout)
        why = advice.why or _("this computer has neither a tunnel program nor a signed server list")
        raise UserError(_("No bundle was made"), why, advice.step)
    _write_new(path, make_bundle(core=core, server_list=server_list))
    said.append(_("Written: {path}. On the other computer: sudo psiphon-vpn setup --bundle FILE").format(path=path))
    if core is not None:
        said.append(
            _("If it does not know this tunnel program, it needs --sha256 too: tell the number by another way.")
        )
    return said


_MODE: Final = 0o644


def _write_new(path: Path, content: bytes) -> None:
    """Write a file that does not exist yet: never through a link or over another file, whoever owns the directory."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, _MODE)
        with contextlib.closing(os.fdopen(descriptor, "wb")) as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
    except FileExistsError as error:
        raise _refuse(_("{path} exists already").format(path=path), _("Give another name.")) from error
    except OSError as error:
        raise _refuse(f"{path}: {error.strerror or error}", _("Give a place where you may write.")) from error


def _refuse(why: str, next_step: str) -> UserError:
    return UserError(_("No bundle was made"), why, next_step)


COMMANDS: Final = (bundle,)
