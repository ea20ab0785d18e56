"""A connection to a D-Bus message bus: calls, signals, file descriptors. Small, since the daemon must stay small.

It needs three calls and four signals. Why no library does it: docs/architecture.md, "Sleep".
"""

import array
import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import unquote

from psiphon_vpn.linux.dbus_wire import (
    ERROR,
    METHOD_RETURN,
    SIGNAL,
    Message,
    WireError,
    measure,
    parse_message,
    render_call,
)
from psiphon_vpn.tasks import call_when_readable, describe, forget_readable

log = logging.getLogger(__name__)

SYSTEM_BUS: Final = "unix:path=/run/dbus/system_bus_socket"
BUS_NAME: Final = "org.freedesktop.DBus"
BUS_PATH: Final = "/org/freedesktop/DBus"
CALL_SECONDS: Final = 5.0
_MAX_FDS: Final = 16
_CHUNK: Final = 65536


class BusError(Exception):
    """There is no bus, it went away, or it says no; why, in English."""


def find_socket(address: str) -> str:
    """The first Unix socket in a D-Bus address, as `socket.connect` wants it.

    Raises:
        BusError: there is none.
    """
    for one in address.split(";"):
        transport, _, rest = one.partition(":")
        keys = dict(pair.split("=", 1) for pair in rest.split(",") if "=" in pair)
        if transport == "unix" and "path" in keys:
            return unquote(keys["path"])
        if transport == "unix" and "abstract" in keys:
            return "\0" + unquote(keys["abstract"])
    raise BusError("the bus has no address that is a Unix socket")


class Bus:
    """One connection. Made by `open_bus`; of no use any more once `closed` is set."""

    def __init__(self, connection: socket.socket, on_signal: Callable[[Message], None]) -> None:
        self._socket = connection
        self._on_signal = on_signal
        self._serial = 0
        self._waiting: dict[int, asyncio.Future[tuple[Message, list[int]]]] = {}
        self._buffer = b""
        self._fds: list[int] = []
        self.closed = asyncio.Event()

    async def begin(self) -> None:
        """Authenticate as who we are, and enter the bus.

        Raises:
            BusError: it does not let us.
        """
        loop = asyncio.get_running_loop()
        for line, wanted in (
            (f"\0AUTH EXTERNAL {str(os.geteuid()).encode().hex()}\r\n", b"OK "),
            ("NEGOTIATE_UNIX_FD\r\n", b"AGREE_UNIX_FD"),
        ):
            await loop.sock_sendall(self._socket, line.encode())
            answer = await loop.sock_recv(self._socket, 512)
            if not answer.startswith(wanted):
                raise BusError("the bus does not accept us")
        await loop.sock_sendall(self._socket, b"BEGIN\r\n")
        call_when_readable(self._socket.fileno(), self._receive_or_leave)
        await self.call(BUS_NAME, BUS_PATH, BUS_NAME, "Hello")

    def close(self) -> None:
        """Leave. Whoever waits for an answer gets a BusError."""
        if self.closed.is_set():
            return
        self.closed.set()
        forget_readable(self._socket.fileno())
        self._socket.close()
        for descriptor in self._fds:
            os.close(descriptor)
        self._fds.clear()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(BusError("the bus went away"))

    async def call(
        self, destination: str, path: str, interface: str, member: str, signature: str = "", *arguments: Any
    ) -> tuple[Any, ...]:
        """Call a method and return what it returns; a file descriptor (type h) is an open one, the caller's to close.

        Raises:
            BusError: no answer within CALL_SECONDS, or an error.
        """
        if self.closed.is_set():
            raise BusError("the bus went away")
        self._serial += 1
        serial = self._serial
        data = render_call(
            serial,
            destination=destination,
            path=path,
            interface=interface,
            member=member,
            signature=signature,
            arguments=arguments,
        )
        future: asyncio.Future[tuple[Message, list[int]]] = asyncio.get_running_loop().create_future()
        self._waiting[serial] = future
        try:
            async with asyncio.timeout(CALL_SECONDS):
                await asyncio.get_running_loop().sock_sendall(self._socket, data)
                message, descriptors = await future
        except (TimeoutError, OSError) as error:
            raise BusError(f"{member}: {error!r}") from error
        finally:
            self._waiting.pop(serial, None)
        if message.kind == ERROR:
            raise BusError(f"{member}: {message.error}")
        return self._take_descriptors(message, descriptors)

    @staticmethod
    def _take_descriptors(message: Message, descriptors: list[int]) -> tuple[Any, ...]:
        if message.signature == "h" and len(descriptors) == 1:
            return (descriptors[0],)
        for descriptor in descriptors:
            os.close(descriptor)
        return message.arguments

    async def listen(self, rule: str) -> None:
        """Have signals sent to us that match a rule ("Match Rules" of the specification).

        Raises:
            BusError: as for `call`.
        """
        await self.call(BUS_NAME, BUS_PATH, BUS_NAME, "AddMatch", "s", rule)

    async def find_owner(self, name: str) -> str | None:
        """The unique name of who has a well-known one, if anybody.

        Raises:
            BusError: the bus went away.
        """
        try:
            return str((await self.call(BUS_NAME, BUS_PATH, BUS_NAME, "GetNameOwner", "s", name))[0])
        except BusError:
            if self.closed.is_set():
                raise
            return None

    def _receive_or_leave(self) -> None:
        """Whatever the bus sends, and whatever comes of it: at worst the connection ends, and another is made."""
        try:
            self._receive()
        except Exception as error:  # noqa: BLE001  nothing on a bus may end the daemon
            log.error("a message of the bus could not be handled: %s", describe(error))
            self.close()

    def _receive(self) -> None:
        try:
            data, ancillary, _flags, _address = self._socket.recvmsg(
                _CHUNK, socket.CMSG_SPACE(_MAX_FDS * 4), socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                received = array.array("i")
                received.frombytes(content[: len(content) - len(content) % received.itemsize])
                self._fds.extend(received)
        if not data:
            self.close()
            return
        self._buffer += data
        try:
            while (length := measure(self._buffer)) is not None and length <= len(self._buffer):
                message = parse_message(self._buffer[:length])
                self._buffer = self._buffer[length:]
                self._handle(message)
        except WireError:
            self.close()

    def _handle(self, message: Message) -> None:
        descriptors, self._fds = self._fds[: message.fd_count], self._fds[message.fd_count :]
        future = self._waiting.get(message.reply_to) if message.kind in {METHOD_RETURN, ERROR} else None
        if future is not None and not future.done():
            future.set_result((message, descriptors))
            return
        for descriptor in descriptors:
            os.close(descriptor)
        if message.kind == SIGNAL:
            self._on_signal(message)


async def open_bus(address: str, on_signal: Callable[[Message], None]) -> Bus:
    """Connect.

    Args:
        address: of the bus, as in DBUS_SYSTEM_BUS_ADDRESS.
        on_signal: called with every signal; who sent it is for the caller to check.

    Raises:
        BusError: there is no bus, or it does not let us in.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    bus = Bus(connection, on_signal)
    try:
        async with asyncio.timeout(CALL_SECONDS):
            await asyncio.get_running_loop().sock_connect(connection, find_socket(address))
            await bus.begin()
    except (OSError, TimeoutError) as error:
        with contextlib.suppress(OSError):
            bus.close()
        raise BusError(str(error) or "the bus does not answer") from error
    except (BusError, asyncio.CancelledError):
        bus.close()
        raise
    return bus
