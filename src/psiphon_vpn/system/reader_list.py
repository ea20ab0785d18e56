# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Root's list of the users who may read the status (`Layout.readers`): what is in it."""

from __future__ import annotations

import logging
import stat
from pathlib import Path
from typing import Final

from psiphon_vpn.accounts import MAX_ID, find_user
from psiphon_vpn.stored_files import StoredError, read_stored

log = logging.getLogger(__name__)

FILE_NAME: Final = "readers"
MAX_READERS: Final = 100
MAX_SIZE: Final = 64 * 1024
_NO_ID: Final = 2**32 - 1


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
