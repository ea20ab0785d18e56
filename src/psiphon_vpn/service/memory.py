"""Keeps the daemon small: returns the memory that a change needed to the system once it is quiet.

Objects in reference cycles stay until the interpreter collects them, and the C library keeps freed memory.
"""

import asyncio
import ctypes
import gc
import os
from collections.abc import Callable
from typing import Final, NoReturn

from psiphon_vpn.service.parts import Part
from psiphon_vpn.tasks import Supervisor, call_later

EXIT_NO_MEMORY: Final = 71
"""sysexits.h EX_OSERR."""
QUIET_SECONDS = 5.0
"""Collecting cycles takes some 20 ms, during which the daemon handles nothing else."""


def give_back() -> None:
    """Collect reference cycles, and return free memory to the system (malloc_trim(3), if it exists)."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # only glibc has it
    if trim is not None:
        trim(0)


def end_without_memory() -> NoReturn:
    """End the daemon at once: without memory the event loop would fail repeatedly in the same place.

    The core ends with the daemon and the lease runs out, which needs no memory; the service manager starts a fresh
    daemon.
    """
    os.write(2, b"no memory: the daemon ends, locked\n")
    os._exit(EXIT_NO_MEMORY)


class Tidier:
    """Returns memory some seconds after a change, and not more often.

    Args:
        is_quiet: whether now is a good moment; if not, it tries again later.
        tasks: starts what waits.
    """

    def __init__(self, is_quiet: Callable[[], bool], tasks: Supervisor) -> None:
        self._is_quiet = is_quiet
        self._tasks = tasks
        self._due: asyncio.TimerHandle | None = None

    def changed(self) -> None:
        """Something happened: tidy later."""
        if self._due is None:
            self._due = call_later(QUIET_SECONDS, self._tasks.guard(Part.TIDYING, self._tidy))

    def cancel(self) -> None:
        """Do not tidy any more."""
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _tidy(self) -> None:
        self._due = None
        if self._is_quiet():
            give_back()
        else:
            self.changed()
