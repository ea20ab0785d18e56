"""What the core stores between its runs, set aside where it cannot be used."""

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
"""Entries of what was set aside before: a second or two. What is more is removed in several attempts."""


def set_data_aside(data_dir: Path) -> bool:
    """Rename the data store, in the place of one that was set aside before. No core may be running.

    It holds what the core fetches or learns again: servers, tactics, which of them worked. The core itself throws away
    a file that it finds corrupt; this is for a file that makes it crash, and for what it may not even remove.

    Args:
        data_dir: the core's data root.

    Returns:
        Whether it is out of the way. Never raises: what cannot be moved is told, and the core says what it makes of it.
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
