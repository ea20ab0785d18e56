"""The queue of events: handed out one by one in their order. Of looks at the same ways out in a row the last counts."""

import asyncio
from collections import deque

from psiphon_vpn.service.events import Event, NetworkSeen


def _replaces(event: Event, waiting: Event) -> bool:
    """Whether an event says all that one says which waits before it.

    What is a transition is decided by the ways out and what is in use of them: a look that saw other ones is never
    passed over.
    """
    if not (isinstance(event, NetworkSeen) and isinstance(waiting, NetworkSeen)):
        return False
    return (event.seen.uplinks, event.uses) == (waiting.seen.uplinks, waiting.uses)


class Mailbox:
    """Events that wait. Whoever takes one says when it was handled."""

    def __init__(self) -> None:
        self._waiting: deque[Event] = deque()
        self._arrived = asyncio.Event()
        self._settled = asyncio.Event()
        self._settled.set()

    def put(self, event: Event) -> None:
        """Hand an event in."""
        if self._waiting and _replaces(event, self._waiting[-1]):
            self._waiting.pop()
        self._waiting.append(event)
        self._arrived.set()
        self._settled.clear()

    async def take(self) -> Event:
        """The next event, once there is one."""
        await self._arrived.wait()
        event = self._waiting.popleft()
        if not self._waiting:
            self._arrived.clear()
        return event

    def handled(self) -> None:
        """The event that was taken last was handled."""
        if not self._waiting:
            self._settled.set()

    @property
    def busy(self) -> bool:
        """Whether an event waits, or is being handled."""
        return not self._settled.is_set()

    async def settle(self) -> None:
        """Wait until every event handed in so far was handled."""
        await self._settled.wait()
