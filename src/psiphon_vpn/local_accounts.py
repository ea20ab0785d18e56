"""Keeps what a command starts from asking a name service: nft looks every user's number up as a name.

(`uid_type_parse` of nftables' meta.c asks getpwnam(3) for "990" before it takes it for a number, and listing as JSON
asks getpwuid(3).) Where the directory is in the locked network each look-up waits for minutes. So a command of root's
gets a mount namespace of its own, in which accounts come from files (nsswitch.conf(5)), and where no nscd answers. The
units get the same by InaccessiblePaths= (`resources/`).
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import tempfile
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

CONFIGURATIONS: Final = ("/etc/nsswitch.conf", "/usr/etc/nsswitch.conf")
"""Of the name service switch. The second is openSUSE's."""
CACHES: Final = ("/run/nscd/socket", "/run/.nscd_socket")
"""Where nscd(8) listens; it would ask in the place of whoever asks it."""
ACCOUNTS: Final = ("passwd", "group", "shadow", "gshadow", "initgroups")
"""Databases of nsswitch.conf(5)."""
PLACE: Final = "/run"
"""For the file that covers another, until it does."""
_NEW_MOUNTS: Final = 0x00020000
"""CLONE_NEWNS of unshare(2)."""
_SLAVE: Final = (1 << 14) | (1 << 19)
"""MS_REC and MS_SLAVE of mount(2): what is unmounted elsewhere is unmounted here, what is mounted here stays here."""
_BIND: Final = 1 << 12
"""MS_BIND."""


def use_local_accounts() -> bool:
    """Cover the configuration of name services for this process and all that it starts. Called before any thread.

    Returns:
        Whether that could be done: only root can, and in some containers not even root. Never raises.
    """
    if os.geteuid() != 0:
        return False
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        _check(libc.unshare(_NEW_MOUNTS))
        _check(libc.mount(None, b"/", None, ctypes.c_ulong(_SLAVE), None))
        for path in CONFIGURATIONS:
            if os.path.isfile(path):
                _cover(libc, path, use_files_only(Path(path).read_bytes()))
        for path in CACHES:
            if os.path.exists(path):
                _cover(libc, path, b"")
    except (OSError, AttributeError) as error:
        log.debug("name services stay as they are: %s", error)
        return False
    return True


def use_files_only(configuration: bytes) -> bytes:
    """A nsswitch.conf(5) in which accounts come from files alone; names of hosts are looked up as before."""
    kept = [
        line for line in configuration.split(b"\n") if line.split(b":")[0].strip().decode("latin-1") not in ACCOUNTS
    ]
    return b"\n".join([*(b"%s: files" % name.encode() for name in ACCOUNTS), *kept, b""])


def _cover(libc: ctypes.CDLL, path: str, content: bytes) -> None:
    descriptor, name = tempfile.mkstemp(prefix=".psiphon-vpn-", dir=PLACE)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), 0o644)
        _check(libc.mount(name.encode(), path.encode(), None, ctypes.c_ulong(_BIND), None))
    finally:
        with contextlib.suppress(OSError):
            os.unlink(name)


def _check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
