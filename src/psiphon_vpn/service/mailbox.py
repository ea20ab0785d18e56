# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The queue of events, in their order. Of successive looks at the same ways out only the last counts."""

import asyncio
from collections import deque

from psiphon_vpn.service.events import Event, NetworkSeen


def _replaces(event: Event, waiting: Event) -> bool:
    """Whether an event makes a waiting one superfluous.

    The ways out and the use of them decide what is a transition: a look that saw different ones is never dropped.
    """
    if not (isinstance(event, NetworkSeen) and isinstance(waiting, NetworkSeen)):
        return False
    return (event.seen.uplinks, event.uses) == (waiting.seen.uplinks, waiting.uses)


class Mailbox:
    """The waiting events. The consumer reports when it has handled one."""

    def __init__(self) -> None:
        self._waiting: deque[Event] = deque()
        self._arrived = asyncio.Event()
        self._settled = asyncio.Event()
        self._settled.set()

    def put(self, event: Event) -> None:
        """Add an event."""
        if self._waiting and _replaces(event, self._waiting[-1]):
            self._waiting.pop()
        self._waiting.append(event)
        self._arrived.set()
        self._settled.clear()

    async def take(self) -> Event:
        """Wait for the next event and take it."""
        await self._arrived.wait()
        event = self._waiting.popleft()
        if not self._waiting:
            self._arrived.clear()
        return event

    def handled(self) -> None:
        """Report that the last event taken was handled."""
        if not self._waiting:
            self._settled.set()

    @property
    def busy(self) -> bool:
        """Whether an event waits or is being handled."""
        return not self._settled.is_set()

    async def settle(self) -> None:
        """Wait until every event added so far was handled."""
        await self._settled.wait()
