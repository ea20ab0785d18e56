"""The users who may read the status besides root and the service's group: a list that the installation makes for root.

The status is no secret: everybody on a machine can see its routes and its tunnel. The list exists because each request
costs the daemon time. So other users do not even reach the daemon: the control socket has an access control list
(acl(5)). Nobody has to join psiphon-group, by whose number the firewall identifies the service. The users on the list
can only read.
"""

from __future__ import annotations

import logging
import os
import stat
import struct
from pathlib import Path
from typing import Final

from psiphon_vpn.accounts import MAX_ID, find_user
from psiphon_vpn.stored_files import StoredError, read_stored

log = logging.getLogger(__name__)

FILE_NAME: Final = "readers"
MAX_READERS: Final = 100
MAX_SIZE: Final = 64 * 1024
_ACL: Final = "system.posix_acl_access"
_VERSION: Final = 2
_USER_OBJ, _USER, _GROUP_OBJ, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x10, 0x20
"""Tags of entries, from linux/posix_acl.h."""
_NO_ID: Final = 2**32 - 1
_READ_WRITE: Final = 6


def load_readers(path: Path) -> frozenset[int]:
    """The user numbers in a list. Empty if there is no list, or if users other than root could have written it.

    Never raises: an error is logged, and fewer users may read.
    """
    try:
        found = path.lstat()
        if found.st_uid != 0 or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            log.warning("others than root can write %s: only root may read the status", path)
            return frozenset()
        return parse_readers(read_stored(path, high=MAX_SIZE))
    except FileNotFoundError:
        return frozenset()
    except (OSError, StoredError) as error:
        log.warning("%s cannot be read, so only root may read the status: %s", path, error)
        return frozenset()


def parse_readers(content: bytes) -> frozenset[int]:
    """One user per line, by name or number; # begins a comment. An unknown name is logged and left out."""
    readers: set[int] = set()
    for line in content.decode("utf-8", "replace").splitlines():
        word = line.partition("#")[0].strip()
        if not word:
            continue
        if word.isascii() and word.isdigit():
            number = int(word) if len(word) <= 10 else _NO_ID
        else:
            user = find_user(word)
            number = _NO_ID if user is None else user.uid
        if number > MAX_ID or len(readers) >= MAX_READERS:
            log.warning("the list of readers has an unknown user, or more than %d", MAX_READERS)
            continue
        readers.add(number)
    return frozenset(readers)


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
