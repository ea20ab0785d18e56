# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Prepares the known servers in a thread: begun as soon as a start is decided, taken when the start is due.

Loading the rules in between takes about as long as verifying a list, which only the first start has to do.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from psiphon_vpn.servers.errors import ListFlaw
from psiphon_vpn.servers.handing import Handed, Handing
from psiphon_vpn.tasks import describe, start_thread

log = logging.getLogger(__name__)

TAKE_SECONDS: Final = 30.0
"""A start does not wait longer for its list: the core may know servers of its own. The next start finds it ready."""


class Listing:
    """Servers that are being prepared for one start.

    Args:
        handing: prepares them; None: there are none.
        profile: name of the profile.
    """

    def __init__(self, handing: Handing | None, profile: str) -> None:
        self._task = None if handing is None else start_thread(handing.prepare, profile)
        if self._task is not None:
            # Whether or not it is taken, its failure is handled.
            self._task.add_done_callback(_log_failure)

    async def take(self) -> Handed:
        """Wait for them. Never raises: a core without a list is better than none."""
        if self._task is None:
            return Handed()
        await asyncio.wait({self._task}, timeout=TAKE_SECONDS)
        if not self._task.done() or self._task.cancelled() or self._task.exception() is not None:
            return Handed(flaw=ListFlaw.CHECKER)
        return self._task.result()


def _log_failure(task: asyncio.Task[Handed]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("the server list could not be prepared: %s", describe(error))
