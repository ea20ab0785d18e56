# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes a command and its children look accounts up in files only: nft looks every uid up as a name.

(`uid_type_parse` of nftables' meta.c calls getpwnam(3) for "990" before it reads it as a number, and listing as JSON
calls getpwuid(3).) With a directory on the locked network each look-up waits for minutes. So a command run by root gets
its own mount namespace, in which accounts come from files (nsswitch.conf(5)) and no nscd answers. The units get the
same by InaccessiblePaths= (`resources/`).
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ctypes
    from typing import Final

CONFIGURATIONS: Final = ("/etc/nsswitch.conf", "/usr/etc/nsswitch.conf")
"""Configuration of the name service switch. The second is openSUSE's."""
CACHES: Final = ("/run/nscd/socket", "/run/.nscd_socket")
"""Sockets of nscd(8), which would query the name service for its clients."""
ACCOUNTS: Final = ("passwd", "group", "shadow", "gshadow", "initgroups")
"""Databases of nsswitch.conf(5)."""
PLACE: Final = "/run"
"""Directory for a file until it is mounted over another."""
_NEW_MOUNTS: Final = 0x00020000
"""CLONE_NEWNS of unshare(2)."""
_SLAVE: Final = (1 << 14) | (1 << 19)
"""MS_REC and MS_SLAVE of mount(2): unmounts elsewhere take effect here, mounts here stay here."""
_BIND: Final = 1 << 12
"""MS_BIND."""


def use_local_accounts() -> bool:
    """Hide name services from this process and all its children. To be called before any thread starts.

    Returns:
        Whether that was possible: only root can, and in some containers not even root. Never raises.
    """
    if os.geteuid() != 0:
        return False
    import ctypes

    try:
        libc = ctypes.CDLL(None, use_errno=True)
        _check(libc.unshare(_NEW_MOUNTS))
        _check(libc.mount(None, b"/", None, ctypes.c_ulong(_SLAVE), None))
        for path in CONFIGURATIONS:
            if os.path.isfile(path):
                _cover(libc, path, use_files_only(_read(path)))
        for path in CACHES:
            if os.path.exists(path):
                _cover(libc, path, b"")
    except (OSError, AttributeError) as error:
        import logging

        logging.getLogger(__name__).debug("name services stay enabled: %s", error)
        return False
    return True


def use_files_only(configuration: bytes) -> bytes:
    """A nsswitch.conf(5) with which accounts come from files alone; host names are looked up as before."""
    kept = [
        line for line in configuration.split(b"\n") if line.split(b":")[0].strip().decode("latin-1") not in ACCOUNTS
    ]
    return b"\n".join([*(b"%s: files" % name.encode() for name in ACCOUNTS), *kept, b""])


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _cover(libc: ctypes.CDLL, path: str, content: bytes) -> None:
    import ctypes

    # In a directory of root's, under a name that is new.
    name = os.path.join(PLACE, f".psiphon-vpn-{os.getpid()}-{os.urandom(8).hex()}")
    descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), 0o644)
        _check(libc.mount(name.encode(), path.encode(), None, ctypes.c_ulong(_BIND), None))
    finally:
        os.unlink(name)


def _check(result: int) -> None:
    if result != 0:
        import ctypes

        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
