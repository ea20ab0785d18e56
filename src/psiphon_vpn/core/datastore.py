# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Sets the core's data store aside when the core cannot use it."""

import logging
import stat
from pathlib import Path
from typing import Final

from psiphon_vpn.tree_removal import remove_tree

log = logging.getLogger(__name__)

STORE_PARENT: Final = "ca.psiphon.PsiphonTunnel.tunnel-core"
"""The core's own directory below its data root (psiphon-tunnel-core, PsiphonDataDirectoryName)."""
STORE: Final = "datastore"
ASIDE: Final = "datastore.broken"
MAX_REMOVED: Final = 100_000
"""Entries removed of an earlier store: a second or two. A larger one is removed in several attempts."""


def set_data_aside(data_dir: Path) -> bool:
    """Rename the data store; it replaces one that was set aside before. No core may be running.

    It contains what the core can fetch or learn again: servers, tactics, which of them worked. The core itself discards
    a file that it finds corrupt; this is for a file that makes it crash, or that it is not allowed to remove.

    Args:
        data_dir: the core's data root.

    Returns:
        Whether it was moved. Never raises: a failure is logged, and the core reports what it cannot use.
    """
    parent = data_dir / STORE_PARENT
    try:
        _remove(parent / ASIDE)
        (parent / STORE).rename(parent / ASIDE)
    except OSError as error:
        log.warning("the core's data store could not be set aside: %s", error.strerror)
        return False
    log.warning("the core's data store cannot be used; it was set aside as %s", ASIDE)
    return True


def _remove(path: Path) -> None:
    try:
        is_directory = stat.S_ISDIR(path.lstat().st_mode)
    except FileNotFoundError:
        return
    if is_directory:
        remove_tree(path, limit=MAX_REMOVED)
    else:
        path.unlink()
