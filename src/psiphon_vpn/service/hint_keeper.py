# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""While the tunnel is open, asks inside it for the addresses of the hosts of the server list, and keeps some as hints.

The questions are bound to the TUN: they go through the tunnel or nowhere. An address is kept only after whoever is
there has proved the host's name, by a certificate that this system trusts: the resolver at the far end may be a
stranger's, and the rescue will call the address from this machine's own. The proof goes by the tunnel's SOCKS proxy:
the rules let nothing else of psiphon-user's into the tunnel. Without the proxy nothing is kept.
"""

import asyncio
import contextlib
import logging
import random
import secrets
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from psiphon_vpn.linux.clocks import read_running, read_wall
from psiphon_vpn.linux.resolver_probe import exchange
from psiphon_vpn.policy import names
from psiphon_vpn.policy.values import Address
from psiphon_vpn.servers.dns_answer import AAAA, A, DnsError, build_address_question, read_addresses
from psiphon_vpn.servers.fetch_order import FETCHER, Order, ProxyAccess, Refusal, RefusedError, read_answer
from psiphon_vpn.servers.hints import (
    FILE_NAME,
    HINTS_PER_HOST,
    PORT,
    is_public,
    leave_out,
    merge_hints,
    read_hints,
    select_hints,
    write_hints,
)
from psiphon_vpn.servers.list_hosts import ListHost
from psiphon_vpn.service.parts import Part
from psiphon_vpn.tasks import Supervisor, start_thread
from psiphon_vpn.unprivileged import Limits, Trouble, UnprivilegedError, run_unprivileged

log = logging.getLogger(__name__)

FIRST_SECONDS: Final = 5.0
"""After an opening: what just opened is often closed again at once."""
AGAIN_SECONDS: Final = 12 * 3600.0
"""Up to half of it is added at random."""
ANSWER_SECONDS: Final = 8.0
CONNECT_SECONDS: Final = 10.0
CHECKED_SECONDS: Final = 6 * 3600.0
"""So long a proof counts without another: a tunnel that opens again and again needs none of its own."""
_LOOPBACK: Final = "127.0.0.1"
_LIMITS: Final = Limits(memory=512 << 20, cpu=10, wait=30.0, output=64)


class Hosts(Protocol):
    """Which hosts have the list (`servers/fetched.py`)."""

    def find_hosts(self, profile: str) -> tuple[ListHost, ...]:
        """The hosts of a profile's list."""


class Inside(Protocol):
    """What is asked inside the tunnel."""

    async def find_addresses(self, host: str) -> tuple[Address, ...]:
        """The addresses that the resolver names for a host; none if it does not answer."""

    async def check_name(self, host: str, address: Address, socks: int) -> None:
        """Have whoever is at an address prove the host's name; raises RefusedError. socks: port of the proxy."""


class Tunnel:
    """The open tunnel itself."""

    async def find_addresses(self, host: str) -> tuple[Address, ...]:
        """Both versions, asked of the resolver through the TUN."""
        return (*await _ask(host, A), *await _ask(host, AAAA))

    async def check_name(self, host: str, address: Address, socks: int) -> None:
        """A process that can open nothing speaks over the connection to the proxy, and ends with it."""
        order = Order(host=host, path="", address=str(address), port=PORT, proxy=ProxyAccess(scheme="socks5"), high=0)
        with socket.socket(
            socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        ) as connection:
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    await asyncio.get_running_loop().sock_connect(connection, (_LOOPBACK, socks))
            except OSError as error:
                raise RefusedError(Refusal.PROXY_UNREACHED) from error
            try:
                answer = await start_thread(_speak, connection.dup(), order)
            except UnprivilegedError as error:
                # Only an answer can make it end by itself.
                refusal = Refusal.WRONG_HOST if error.trouble is Trouble.ENDED else Refusal.SILENT
                raise RefusedError(refusal) from error
            finally:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        read_answer(answer)


def _speak(connection: socket.socket, order: Order) -> bytes:
    with connection:
        number = connection.fileno()
        return run_unprivileged(FETCHER, (str(number),), order.render(), _LIMITS, pass_fds=(number,))


class HintKeeper:
    """Runs while open.

    Args:
        state_dir: where the hints are.
        hosts: whose addresses are kept.
        tasks: starts the work.
        inside: whom it asks.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        *,
        state_dir: Path,
        hosts: Hosts,
        tasks: Supervisor,
        inside: Inside | None = None,
        clock: Callable[[], float] = read_running,
    ) -> None:
        self._path = state_dir / FILE_NAME
        self._hosts = hosts
        self._tasks = tasks
        self._inside = inside or Tunnel()
        self._clock = clock
        self._task: asyncio.Task[None] | None = None
        self._checked: dict[tuple[str, Address], float] = {}

    def start(self, profile: str, socks: int | None) -> None:
        """The tunnel is open.

        Args:
            profile: name of the profile in use.
            socks: port of the tunnel's SOCKS proxy on this machine; None: it has none, and nothing can be proved.
        """
        self.stop()
        if socks is not None:
            self._task = self._tasks.start(Part.HINTS, self._run(profile, socks))

    def stop(self) -> None:
        """The tunnel is closed."""
        self._tasks.cancel(self._task)
        self._task = None

    async def _run(self, profile: str, socks: int) -> None:
        await asyncio.sleep(FIRST_SECONDS)
        while True:
            for host in self._hosts.find_hosts(profile):
                await self._learn(host.host, profile, socks)
            await asyncio.sleep(AGAIN_SECONDS * (1 + random.random() / 2))  # noqa: S311

    async def _learn(self, host: str, profile: str, socks: int) -> None:
        named = await self._inside.find_addresses(host)
        proved: list[Address] = []
        wrong: list[Address] = []
        for address in [address for address in named if is_public(address)][:HINTS_PER_HOST]:
            try:
                await self._check(host, address, socks)
            except RefusedError as refused:
                log.info("an address of a list's host is not kept: %s", refused.refusal)
                wrong += [address] if refused.refusal is Refusal.WRONG_HOST else []
            else:
                proved.append(address)
        self._keep(host, tuple(proved), tuple(wrong), profile)

    async def _check(self, host: str, address: Address, socks: int) -> None:
        now, last = self._clock(), self._checked.get((host, address))
        if last is not None and now - last < CHECKED_SECONDS:
            return
        await self._inside.check_name(host, address, socks)
        self._checked[host, address] = now

    def _keep(self, host: str, proved: tuple[Address, ...], wrong: tuple[Address, ...], profile: str) -> None:
        if not proved and not wrong:
            return
        now = read_wall()
        hosts = [known.host for known in self._hosts.find_hosts(profile)]
        merged = merge_hints(leave_out(read_hints(self._path), host, wrong), host, proved, now=now)
        try:
            write_hints(self._path, select_hints(merged, hosts=hosts, now=now))
        except OSError as error:
            log.warning("the addresses of a list's host were not kept: %s", error.strerror)


async def _ask(host: str, kind: int) -> tuple[Address, ...]:
    """The addresses of one IP version that the resolver in the tunnel names; none if it does not answer."""
    identifier = secrets.randbelow(0x10000)
    try:
        question = build_address_question(host, kind, identifier)
    except ValueError:
        return ()

    def read(data: bytes) -> tuple[Address, ...] | None:
        try:
            return read_addresses(data, host, kind, identifier)
        except DnsError:
            return None

    answer = await exchange(
        question,
        lambda data: read(data) is not None,
        server=names.RESOLVER_IPV4,
        source=names.TUN_IPV4,
        device=names.TUN_NAME,
        seconds=ANSWER_SECONDS,
    )
    return (read(answer) or ()) if answer is not None else ()
