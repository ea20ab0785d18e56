# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes the sealed copy in a thread: begun as soon as a start is decided, taken when the start is due.

Loading the rules in between takes longer than copying and hashing, so the check costs almost no time. The copy was made
for this one start, and cannot have changed since.
"""

from __future__ import annotations

import asyncio
import os

from psiphon_vpn.core.image import CoreSource, RecordedCore, seal_core
from psiphon_vpn.core.naming import name_image
from psiphon_vpn.tasks import start_thread


class Sealing:
    """A sealed copy that is being made. A context manager: at its end, a copy that was not taken is closed."""

    def __init__(self, source: CoreSource) -> None:
        # In a thread: meanwhile the lease must be renewed and events of the kernel handled.
        self._task = start_thread(seal_core, source)
        self._source = source
        self._taken = False

    def __enter__(self) -> Sealing:
        return self

    def __exit__(self, *_exc: object) -> None:
        if not self._taken:
            self._task.add_done_callback(_give_back)

    async def take(self) -> tuple[int, str]:
        """Wait for the copy.

        Returns:
            Its descriptor, which the caller closes, and the path that executes it in a process that inherits it.

        Raises:
            CoreFlawError: the core differs from its record, or cannot be read or copied.
        """
        image = await asyncio.shield(self._task)
        self._taken = True
        if isinstance(self._source, RecordedCore):
            return name_image(image, self._source.name_link, owner=self._source.owner)
        return name_image(image, None, owner=0)


def _give_back(task: asyncio.Task[int]) -> None:
    if not task.cancelled() and task.exception() is None:
        os.close(task.result())
