"""Sleep as systemd-logind announces it (org.freedesktop.login1(5)), with a delay lock so that it waits for us.

Without logind, without a bus, or without the right to delay it, nothing here fails: the clock tells of a sleep too
(linux/clocks.py), after it.
"""

import asyncio
import logging
import os
from typing import Final, Protocol

from psiphon_vpn.linux.dbus import BUS_NAME, SYSTEM_BUS, Bus, BusError, open_bus
from psiphon_vpn.linux.dbus_wire import Message
from psiphon_vpn.tasks import beside

log = logging.getLogger(__name__)

LOGIND: Final = "org.freedesktop.login1"
LOGIND_PATH: Final = "/org/freedesktop/login1"
MANAGER: Final = "org.freedesktop.login1.Manager"
PROPERTIES: Final = "org.freedesktop.DBus.Properties"
FIRST_PAUSE_SECONDS, LAST_PAUSE_SECONDS = 1.0, 60.0
_RULES: Final = (
    f"type='signal',sender='{BUS_NAME}',interface='{BUS_NAME}',member='NameOwnerChanged',arg0='{LOGIND}'",
    f"type='signal',sender='{LOGIND}',interface='{MANAGER}',member='PrepareForSleep',path='{LOGIND_PATH}'",
)


class Sleeper(Protocol):
    """Who wants to know of sleep."""

    def close_now(self) -> None:
        """Sleep was announced: what cannot wait for anything."""
        ...

    async def prepare(self) -> None:
        """Sleep was announced. The machine waits, for some seconds, until this returns."""
        ...

    async def resume(self, *, announced: bool) -> None:
        """The machine runs again, or did not sleep after all."""
        ...


class LogindSleep:
    """Tells a sleeper what logind announces.

    Args:
        sleeper: is told.
        address: of the system bus; None takes it from the environment, or where it is everywhere.
    """

    def __init__(self, sleeper: Sleeper, *, address: str | None = None) -> None:
        self._sleeper = sleeper
        self._address = address or os.environ.get("DBUS_SYSTEM_BUS_ADDRESS") or SYSTEM_BUS
        self._owner: str | None = None
        self._inhibitor: int | None = None
        self._news: asyncio.Queue[bool | None] = asyncio.Queue()
        """What was announced: sleep, its end, or that logind itself is another one."""
        self._pause = FIRST_PAUSE_SECONDS
        self._said = ""

    async def run(self) -> None:
        """Tell for ever, whatever becomes of the bus."""
        while True:
            try:
                await self._attend()
            except BusError as error:
                self._say(f"sleep is not announced to us: {error}")
            except Exception:
                # Nothing on a bus is worth the end of the daemon.
                log.exception("a fault while listening for sleep")
            await asyncio.sleep(self._pause)
            self._pause = min(LAST_PAUSE_SECONDS, self._pause * 2)

    def _say(self, text: str) -> None:
        # A machine without a bus is asked for it once a minute for ever: once is enough to say so.
        if text != self._said:
            log.info("%s", text)
            self._said = text

    async def _attend(self) -> None:
        bus = await open_bus(self._address, self._hear)
        try:
            async with beside(bus.closed.wait()) as closing:
                for rule in _RULES:
                    await bus.listen(rule)
                self._news = asyncio.Queue()
                await self._meet(bus)
                self._pause = FIRST_PAUSE_SECONDS
                while not bus.closed.is_set():
                    async with beside(self._news.get()) as news:
                        await asyncio.wait({news, closing}, return_when=asyncio.FIRST_COMPLETED)
                    if not news.cancelled():
                        await self._act(bus, news.result())
            raise BusError("the bus went away")
        finally:
            self._owner = None
            self._release()
            bus.close()

    async def _meet(self, bus: Bus) -> None:
        """Take the delay lock, and find out what was announced while nobody listened."""
        self._owner = await bus.find_owner(LOGIND)
        if self._owner is None:
            self._say("there is no logind: only the clock tells of sleep")
            return
        await self._hold(bus)
        try:
            found = await bus.call(LOGIND, LOGIND_PATH, PROPERTIES, "Get", "ss", MANAGER, "PreparingForSleep")
        except BusError:
            if bus.closed.is_set():
                raise
            return
        await self._act(bus, found == (True,))

    async def _act(self, bus: Bus, news: bool | None) -> None:
        if news is None:
            self._release()
            await self._meet(bus)
        elif news:
            self._sleeper.close_now()
            await self._sleeper.prepare()
            self._release()
        else:
            await self._sleeper.resume(announced=True)
            if self._inhibitor is None:
                await self._hold(bus)

    def _hear(self, message: Message) -> None:
        if message.member == "NameOwnerChanged" and message.sender == BUS_NAME:
            if message.arguments[:1] == (LOGIND,):
                self._owner = None
                self._news.put_nowait(None)
        # Anybody may send us a signal of that name; only logind's own counts.
        elif message.member == "PrepareForSleep" and self._owner is not None and message.sender == self._owner:
            going = message.arguments == (True,)
            if going:
                self._sleeper.close_now()
            self._news.put_nowait(going)

    async def _hold(self, bus: Bus) -> None:
        """The delay lock: closing its descriptor lets the machine sleep. logind goes on without us after 5 s at most.

        logind asks polkit who may; where that says no, sleep is announced to us all the same.
        """
        self._release()
        try:
            (self._inhibitor,) = await bus.call(
                LOGIND, LOGIND_PATH, MANAGER, "Inhibit", "ssss", "sleep", "psiphon-vpn", "Closing the tunnel", "delay"
            )
            self._say("sleep waits until the tunnel is closed")
        except (BusError, ValueError) as error:
            if bus.closed.is_set():
                raise BusError("the bus went away") from error
            self._say(f"sleep does not wait for us: {error}")

    def _release(self) -> None:
        if self._inhibitor is not None:
            os.close(self._inhibitor)
            self._inhibitor = None
