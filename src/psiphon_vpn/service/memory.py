"""Keeps the daemon as small as it began: memory that a change needed goes back to the system once it is quiet.

What refers to itself stays until the interpreter looks for such circles, and the holes that a change leaves stay with
the C library.
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
"""Looking for circles takes some 20 ms, in which nothing else is heard."""


def give_back() -> None:
    """Collect what only refers to itself, and return free memory to the system (malloc_trim(3), where there is one)."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone has it
    if trim is not None:
        trim(0)


def end_without_memory() -> NoReturn:
    """Without memory nothing can be relied on, and the event loop would fail for ever in the same place.

    So the end, at once: the core goes with us and the lease runs out, which takes no memory, and the service manager
    starts a fresh daemon.
    """
    os.write(2, b"no memory: the daemon ends, locked\n")
    os._exit(EXIT_NO_MEMORY)


class Tidier:
    """Gives memory back some seconds after a change, and at most so often.

    Args:
        is_quiet: whether now is a good moment; if not, it is asked again later.
        tasks: through which it waits.
    """

    def __init__(self, is_quiet: Callable[[], bool], tasks: Supervisor) -> None:
        self._is_quiet = is_quiet
        self._tasks = tasks
        self._due: asyncio.TimerHandle | None = None

    def changed(self) -> None:
        """Something happened."""
        if self._due is None:
            self._due = call_later(QUIET_SECONDS, self._tasks.guard(Part.TIDYING, self._tidy))

    def cancel(self) -> None:
        """Leave it."""
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _tidy(self) -> None:
        self._due = None
        if self._is_quiet():
            give_back()
        else:
            self.changed()
