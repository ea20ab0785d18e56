# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The users who may read the status besides root and the service's group: a list that the installation makes for root.

The status is no secret: everybody on a machine can see its routes and its tunnel. The list exists because each request
costs the daemon time. So other users do not even reach the daemon: the control socket has an access control list
(acl(5)). Nobody has to join psiphon-group, by whose number the firewall identifies the service. The users on the list
can only read.
"""

from __future__ import annotations

import logging
import os
import struct
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

_ACL: Final = "system.posix_acl_access"
_VERSION: Final = 2
_USER_OBJ, _USER, _GROUP_OBJ, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x10, 0x20
"""Tags of entries, from linux/posix_acl.h."""
_NO_ID: Final = 2**32 - 1
_READ_WRITE: Final = 6


def render_acl(readers: frozenset[int]) -> bytes:
    """An access control list in the kernel's format (setxattr(2), linux/posix_acl_xattr.h): 660, and the readers."""
    entries = [(_USER_OBJ, _READ_WRITE, _NO_ID)]
    entries += [(_USER, _READ_WRITE, uid) for uid in sorted(readers)]
    entries += [(_GROUP_OBJ, _READ_WRITE, _NO_ID), (_MASK, _READ_WRITE, _NO_ID), (_OTHER, 0, _NO_ID)]
    return struct.pack("<I", _VERSION) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def grant_readers(path: Path, readers: frozenset[int]) -> None:
    """Let readers connect to the socket. Never raises: without file system support for such lists they cannot."""
    try:
        os.setxattr(path, _ACL, render_acl(readers), follow_symlinks=False)
    except OSError as error:
        if readers:
            log.warning("only root may read the status: %s", error.strerror)
