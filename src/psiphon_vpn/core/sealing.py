"""The check of the core beside the event loop: begun as soon as a start is decided on, taken when it is due.

Loading the rules comes in between and takes longer than copying and hashing, so the check costs a start almost nothing.
What is taken was copied for this very start, and cannot have changed since.
"""

from __future__ import annotations

import asyncio
import os

from psiphon_vpn.core.image import CoreSource, RecordedCore, seal_core
from psiphon_vpn.core.naming import name_image
from psiphon_vpn.tasks import start_thread


class Sealing:
    """A sealed copy in the making. A context manager: what was not taken is given back at its end."""

    def __init__(self, source: CoreSource) -> None:
        # In a thread: the lease must be renewed and the kernel heard meanwhile.
        self._task = start_thread(seal_core, source)
        self._source = source
        self._taken = False

    def __enter__(self) -> Sealing:
        return self

    def __exit__(self, *_exc: object) -> None:
        if not self._taken:
            self._task.add_done_callback(_give_back)

    async def take(self) -> tuple[int, str]:
        """The copy.

        Returns:
            Its descriptor, which is the caller's to close, and the path that executes it where that is inherited.

        Raises:
            CoreFlawError: the core is not what it has to be.
        """
        image = await asyncio.shield(self._task)
        self._taken = True
        if isinstance(self._source, RecordedCore):
            return name_image(image, self._source.name_link, owner=self._source.owner)
        return name_image(image, None, owner=0)


def _give_back(task: asyncio.Task[int]) -> None:
    if not task.cancelled() and task.exception() is None:
        os.close(task.result())
