# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the commands find the configuration, and to whom it belongs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from psiphon_vpn.i18n import _
from psiphon_vpn.system.layout import Layout
from psiphon_vpn.terminal import echo

if TYPE_CHECKING:
    from psiphon_vpn.config import Settings
    from psiphon_vpn.editing.files import Place


def restore_configuration_owner(runtime_dir: Path) -> None:
    """Restore owner and mode of the installed service's configuration, and say so."""
    from psiphon_vpn.accounts import find_group, find_user
    from psiphon_vpn.system.config_owner import restore_owner
    from psiphon_vpn.system.layout import GROUP, USER
    from psiphon_vpn.system.platform import Account

    layout = Layout()
    # Another runtime directory belongs to a laboratory's service, which must not touch the installed one.
    if runtime_dir != layout.runtime_dir:
        return
    user, gid = find_user(USER), find_group(GROUP)
    if user is None or gid is None:
        return
    account = Account(uid=user.uid, gid=gid)
    try:
        if restore_owner(layout.config, account):
            echo(_("{path} belongs to the service again, so that it can read it.").format(path=layout.config), err=True)
    except OSError as error:
        echo(f"{layout.config}: {error.strerror}", err=True)


def find_place(path: Path | None, runtime_dir: Path | None = None) -> Place:
    """The installed configuration, given to the service again if an editor made it root's; or another file.

    Args:
        path: another file than the installed one.
        runtime_dir: if the file is to be changed, for the service that it belongs to.
    """
    from psiphon_vpn.editing.files import Place, find_installed
    from psiphon_vpn.system.platform import Account

    layout = Layout()
    if path is not None:
        account = None
        if path.exists():
            status = path.stat()
            account = Account(uid=status.st_uid, gid=status.st_gid)
        return Place(path=path.absolute(), lock=layout.edit_lock, account=account)
    if runtime_dir is not None:
        restore_configuration_owner(runtime_dir)
    return find_installed(layout)


def read_settings() -> Settings:
    """The configuration as the service has it; the defaults only where there is no file.

    A file with a mistake may still choose other servers, or none, so the defaults do not stand in for it.

    Raises:
        ConfigError: it cannot be used.
        UserError: it cannot be read.
    """
    from psiphon_vpn.config import Settings
    from psiphon_vpn.editing import requests
    from psiphon_vpn.editing.files import read_file

    place = find_place(None)
    if not os.path.lexists(place.path.parent):  # nothing is set up yet
        return Settings()
    found = read_file(place)
    return Settings() if found is None else requests.read_settings(found.content, path=place.path)
