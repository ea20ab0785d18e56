# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The stand-in core's data store. It opens, rejects and replaces it like the real core, with the same messages.

Measured with a real core: it deletes random bytes, a truncated file, an empty directory or a file that it may not read,
and makes a new store. If it cannot delete that, it ends with code 1. A store with an absurd length of the list of free
pages makes it crash with code 2, and is still there the next time. It waits for a locked store and does not delete it.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Final

from psiphon_lab.standin_faults import FaultPlan
from psiphon_lab.standin_notices import Notices

STORE_FILE: Final = Path("datastore") / "psiphon.boltdb"
GOOD: Final = b"STAND-IN STORE\n"
CRASHES: Final = b"STAND-IN STORE THAT NOBODY CAN READ\n"
"""A file of this content makes the stand-in crash, as one with a corrupt list of free pages does the real core."""
_OPENING: Final = "main.(*TunnelWorker).Init#355: psiphon.openDataStore#169: psiphon.tryDatastoreOpenDB#167"
_CRASH: Final = (
    b"fatal error: runtime: out of memory\n",
    b"\n",
    b"runtime.throw({0x1036abc?, 0x2c94?})\n",
    b"github.com/Psiphon-Labs/bolt.(*freelist).read(0x325300152e00, 0x0?)\n",
    b"github.com/Psiphon-Labs/psiphon-tunnel-core/psiphon.tryDatastoreOpenDB({0x3253001a69c0, 0x5b}, 0x0)\n",
    b"main.main()\n",
)
_TRIES: Final = 3


class _CorruptError(Exception):
    """The file is not a data store."""


class StoreEndError(Exception):
    """The data store makes the core end with this code. The notices have been written."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def _open(path: Path) -> None:
    """Open, check and lock the store. The descriptor stays open as long as the process lives."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    content = os.read(descriptor, 4096)
    if content == CRASHES:
        raise MemoryError
    if content not in (b"", GOOD):
        os.close(descriptor)
        raise _CorruptError
    if not content:
        os.write(descriptor, GOOD)


def _crash(notices: Notices) -> StoreEndError:
    for line in _CRASH:
        notices.write(line)
    return StoreEndError(2)


def open_store(directory: Path, plan: FaultPlan, notices: Notices) -> None:
    """Open the data store below the core's own directory.

    Raises:
        StoreEndError: the core must end; the notices say why.
    """
    path = directory / STORE_FILE
    if plan.find("datastore_crash") is not None:
        raise _crash(notices)
    why = "timeout"
    for number in range(_TRIES):
        try:
            if plan.find("datastore") is not None:
                raise BlockingIOError(errno.EAGAIN, "fault")
            if plan.find("datastore_broken") is not None:
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            _open(path)
        except MemoryError:
            raise _crash(notices) from None
        except BlockingIOError:
            why = "timeout"
            continue
        except _CorruptError:
            why = "invalid database"
        except OSError as error:
            why = f"open {path}: {os.strerror(error.errno or 0).lower()}"
        else:
            return
        if number + 1 < _TRIES:
            notices.emit("Warning", message=f"tryDatastoreOpenDB failed: psiphon.tryDatastoreOpenDB#167: {why}")
            notices.emit("Warning", message="tryDatastoreOpenDB: reset")
            _delete(path)
    notices.emit("Error", message=f"error in init: {_OPENING}: {why}")
    raise StoreEndError(1)


def _delete(path: Path) -> None:
    """Delete a file or an empty directory, like Go's os.Remove."""
    for remove in (os.unlink, os.rmdir):
        try:
            remove(path)
        except OSError:
            continue
        return
