# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The rescue: while connecting, and no known server answers, asks the hosts of the server list for a newer one.

Their addresses come from earlier tunnels (`servers/hints.py`), so that no name is looked up. The daemon itself makes
each connection, bound to the uplink, to port 443 of a public address or to the upstream proxy; a process that can open
nothing else then speaks over it (`servers/direct_fetch.py`). Whatever that process does, it reaches nobody else. The
list counts only by its signature. A rescue makes at most `ATTEMPTS` connections, one after the other, each within a
time limit; the state machine decides when a rescue is made, and each of its moves ends it.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol

from psiphon_vpn.i18n import _
from psiphon_vpn.linux.clocks import read_wall
from psiphon_vpn.network.uplink import Uplink
from psiphon_vpn.policy.onlink import OnLink
from psiphon_vpn.policy.routing import IPV6
from psiphon_vpn.policy.values import Address
from psiphon_vpn.servers.fetch_order import FETCHER, Order, Refusal, RefusedError, read_answer
from psiphon_vpn.servers.hints import FILE_NAME, PORT, Hint, Network, forget_hint, read_hints, select_hints, write_hints
from psiphon_vpn.servers.list_hosts import ListHost
from psiphon_vpn.servers.proxies import Proxy, find_proxy
from psiphon_vpn.servers.signed_list import MAX_SIGNED
from psiphon_vpn.service.events import Event, RescueEnded
from psiphon_vpn.service.parts import Part
from psiphon_vpn.tasks import Supervisor, start_thread
from psiphon_vpn.unprivileged import Limits, Trouble, UnprivilegedError, run_unprivileged

log = logging.getLogger(__name__)

ATTEMPTS: Final = 3
"""Connections in one rescue."""
CONNECT_SECONDS: Final = 10.0
_LIMITS: Final = Limits(memory=512 << 20, cpu=20, wait=50.0, output=MAX_SIGNED + 1)
_FORGOTTEN: Final = frozenset({Refusal.WRONG_HOST, Refusal.NO_FILE})
"""After these an address is never tried again, until a tunnel names it anew."""
_PROXY_FAILS: Final = frozenset({Refusal.PROXY_UNREACHED, Refusal.PROXY_ODD, Refusal.PROXY_LOGIN})
"""After these the upstream proxy would do no more for another address."""
_NEVER: Final = datetime.min.replace(tzinfo=UTC)


class Lists(Protocol):
    """Which hosts have the list, and what becomes of it (`servers/fetched.py`)."""

    def find_hosts(self, profile: str) -> tuple[ListHost, ...]:
        """The hosts of a profile's list."""

    def accept(self, content: bytes, profile: str) -> bool:
        """Verify and keep a list; whether the core does not have it yet. Blocks."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """By which way a rescue goes.

    Attributes:
        uplink: interface that each connection is bound to.
        on_link: the networks of this machine's links: nothing there is asked.
        profile: name of the profile whose list is wanted.
        proxy: URL of the upstream proxy, if there is one.
    """

    uplink: Uplink
    on_link: OnLink
    profile: str
    proxy: str | None


class Edge(Protocol):
    """The edge to the network: a connection, and who speaks over it."""

    async def connect(self, address: Address, port: int, device: str) -> socket.socket:
        """Connect by TCP from one interface; raises OSError."""

    def speak(self, connection: socket.socket, order: Order) -> bytes:
        """Fetch over a connection, which is closed in the end. Blocks; raises UnprivilegedError."""


class RealEdge:
    """The network itself, and a process that can do nothing but speak."""

    async def connect(self, address: Address, port: int, device: str) -> socket.socket:
        """Bound to the interface (SO_BINDTODEVICE, socket(7)). The address is no name, so nothing is looked up."""
        family = socket.AF_INET6 if address.version == IPV6 else socket.AF_INET
        connection = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
            async with asyncio.timeout(CONNECT_SECONDS):
                await asyncio.get_running_loop().sock_connect(connection, (str(address), port))
        except BaseException:
            connection.close()
            raise
        return connection

    def speak(self, connection: socket.socket, order: Order) -> bytes:
        """The process ends soon after the connection, or by its time limit."""
        with connection:
            descriptor = connection.fileno()
            return run_unprivileged(FETCHER, (str(descriptor),), order.render(), _LIMITS, pass_fds=(descriptor,))


class Rescue:
    """Carries out rescues, one at a time.

    Args:
        state_dir: where the hints are.
        lists: hosts, and what becomes of a list.
        tasks: starts the work.
        post: takes the events.
        edge: connects and speaks.
    """

    def __init__(
        self,
        *,
        state_dir: Path,
        lists: Lists,
        tasks: Supervisor,
        post: Callable[[Event], None],
        edge: Edge | None = None,
    ) -> None:
        self._path = state_dir / FILE_NAME
        self._lists = lists
        self._edge = edge or RealEdge()
        self._tasks = tasks
        self._post = post
        self._task: asyncio.Task[None] | None = None
        self._connection: socket.socket | None = None
        self._silent: dict[tuple[str, Address], int] = {}
        """How often an address did not answer: the others come first."""
        self._refused: dict[tuple[str, Address], datetime] = {}
        """Addresses that are forgotten, and when they were seen: a disk that is full does not bring them back."""
        self._ended: dict[int, RescueEnded] = {}

    def start(self, number: int, way: Way) -> None:
        """Begin a rescue. An event reports its end, unless `stop` ends it."""
        self._task = self._tasks.start(Part.RESCUE, self._run(number, way))
        # However it ends: the state machine waits for it.
        self._task.add_done_callback(lambda _task: self._report(number))

    async def stop(self) -> None:
        """End it, and wait until nothing of it is sent any more."""
        task, self._task = self._task, None
        self._cut()
        self._tasks.cancel(task)
        if task is not None and not task.done():
            await asyncio.wait({task})

    async def _run(self, number: int, way: Way) -> None:
        try:
            self._ended[number] = RescueEnded(number, found=await self._ask(way))
        except RefusedError as refused:
            self._ended[number] = RescueEnded(number, found=False, proxy_trouble=_explain_proxy(refused.refusal))

    def _report(self, number: int) -> None:
        self._post(self._ended.pop(number, RescueEnded(number, found=False)))

    async def _ask(self, way: Way) -> bool:
        """Ask one host after the other; whether there is a list that the core does not have yet.

        Raises:
            RefusedError: the upstream proxy does nothing for this machine.
        """
        paths = {host.host: host.path for host in self._lists.find_hosts(way.profile)}
        proxy = find_proxy(way.proxy)
        if way.proxy is not None and proxy is None:
            log.info("no rescue: it needs an upstream proxy by http or socks5 that is given by its address")
            return False
        for hint in self._choose(way, tuple(paths), proxied=proxy is not None):
            try:
                content = await self._fetch(way, hint, paths[hint.host], proxy)
            except RefusedError as refused:
                log.info("rescue: a host of the server list was asked: %s", refused.refusal)
                self._learn(hint, refused.refusal)
                if refused.refusal in _PROXY_FAILS:
                    raise
            else:
                found = await start_thread(self._lists.accept, content, way.profile)
                log.info("rescue: a host of the server list gave a file: %s", "a new list" if found else "nothing new")
                return found
        return False

    def _choose(self, way: Way, hosts: tuple[str, ...], *, proxied: bool) -> tuple[Hint, ...]:
        on_link: tuple[Network, ...] = (
            *way.on_link.networks_ipv4,
            *way.on_link.networks_ipv6,
            *way.on_link.guests_ipv6,
        )
        hints = select_hints(read_hints(self._path), hosts=hosts, now=read_wall(), on_link=on_link)
        reached = [
            hint
            for hint in hints
            if (proxied or hint.address.version in way.uplink.versions)
            and hint.seen > self._refused.get((hint.host, hint.address), _NEVER)
        ]
        reached.sort(key=lambda hint: self._silent.get((hint.host, hint.address), 0))
        return tuple(reached[:ATTEMPTS])

    def _learn(self, hint: Hint, refusal: Refusal) -> None:
        key = (hint.host, hint.address)
        if refusal in _FORGOTTEN:
            self._refused[key] = hint.seen
            with contextlib.suppress(OSError):
                write_hints(self._path, forget_hint(read_hints(self._path), hint))
        else:
            self._silent[key] = self._silent.get(key, 0) + 1

    async def _fetch(self, way: Way, hint: Hint, path: str, proxy: Proxy | None) -> bytes:
        address, port = (proxy.endpoint.address, proxy.endpoint.port) if proxy else (hint.address, PORT)
        try:
            self._connection = await self._edge.connect(address, port, way.uplink.name)
        except (ConnectionRefusedError, ConnectionResetError) as error:
            raise RefusedError(Refusal.PROXY_UNREACHED if proxy else Refusal.WRONG_HOST) from error
        except OSError as error:  # a time limit that ran out is one
            raise RefusedError(Refusal.PROXY_UNREACHED if proxy else Refusal.SILENT) from error
        order = Order(
            host=hint.host,
            path=path,
            address=str(hint.address),
            port=PORT,
            proxy=proxy.access if proxy else None,
            high=MAX_SIGNED,
        )
        try:
            answer = await start_thread(self._edge.speak, self._connection.dup(), order)
        except UnprivilegedError as error:
            log.warning("rescue: the process that speaks with a host ended without a result: %s", error.trouble)
            # Only an answer can make it end by itself.
            refusal = Refusal.WRONG_HOST if error.trouble is Trouble.ENDED else Refusal.SILENT
            raise RefusedError(refusal) from error
        finally:
            self._cut()
        return read_answer(answer)

    def _cut(self) -> None:
        """End the connection for the process too that speaks over it: it has no other."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()


def _explain_proxy(refusal: Refusal) -> str:
    return {
        Refusal.PROXY_UNREACHED: _("it cannot be reached"),
        Refusal.PROXY_ODD: _("what is there does not answer as a proxy of that kind does"),
        Refusal.PROXY_LOGIN: _("it refuses the user name and password, or wants them in another form than Basic"),
    }.get(refusal, "")
