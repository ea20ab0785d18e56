"""Keeps the daemon as small as it began: memory that a change needed goes back to the system once it is quiet.

What refers to itself stays until the interpreter looks for such circles, and the holes that a change leaves stay with
the C library.
"""

import asyncio
import ctypes
import gc
from collections.abc import Callable

QUIET_SECONDS = 5.0
"""Looking for circles takes some 20 ms, in which nothing else is heard."""


def give_back() -> None:
    """Collect what only refers to itself, and return free memory to the system (malloc_trim(3), where there is one)."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone has it
    if trim is not None:
        trim(0)


class Tidier:
    """Gives memory back some seconds after a change, and at most so often.

    Args:
        is_quiet: whether now is a good moment; if not, it is asked again later.
    """

    def __init__(self, is_quiet: Callable[[], bool]) -> None:
        self._is_quiet = is_quiet
        self._due: asyncio.TimerHandle | None = None

    def changed(self) -> None:
        """Something happened."""
        if self._due is None:
            self._due = asyncio.get_running_loop().call_later(QUIET_SECONDS, self._tidy)

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
