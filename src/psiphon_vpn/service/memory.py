# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Keeps the daemon small: collects the reference cycles that a change left, once it is quiet.

Objects in cycles stay until the interpreter looks for them. The C library keeps what they free, and uses it again: the
daemon stays below 40 MiB so, also after a hundred changes.
"""

import asyncio
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


def collect_cycles() -> None:
    """Free the objects that only cycles keep."""
    gc.collect()


def end_without_memory() -> NoReturn:
    """End the daemon at once: without memory the event loop would fail repeatedly in the same place.

    The core ends with the daemon and the lease runs out, which needs no memory; the service manager starts a fresh
    daemon.
    """
    os.write(2, b"no memory: the daemon ends, locked\n")
    os._exit(EXIT_NO_MEMORY)


class Tidier:
    """Collects cycles some seconds after a change, and not more often.

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
            collect_cycles()
        else:
            self.changed()
