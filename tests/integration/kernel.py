# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A bare network namespace, and the product's parts inside it, for tests against the kernel itself."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from psiphon_lab.namespace import Host, open_host
from psiphon_vpn.linux.nfnetlink import NftSocket
from psiphon_vpn.linux.nft import Nft
from psiphon_vpn.linux.rtnetlink import RouteSocket

T = TypeVar("T")


class Kernel:
    """A host with only `lo`, and ways to do things there."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def nft(self, text: str) -> None:
        """Load a text with nft, as any program would."""
        self.host.run(["nft", "-f", "-"], input=text)

    def accepts(self, text: str) -> bool:
        """Whether nft and the kernel accept a text; nothing is changed."""
        return self.host.run(["nft", "-c", "-f", "-"], input=text, check=False).returncode == 0

    def tables(self) -> list[str]:
        """Names of all tables."""
        return self.host.run(["nft", "list", "tables"]).stdout.split("\n")[:-1]

    def listing(self, *what: str) -> str:
        """The output of `nft list`."""
        return self.host.run(["nft", "-s", "list", *what]).stdout

    def ip(self, *arguments: str) -> str:
        """Run ip(8)."""
        return self.host.run(["ip", *arguments]).stdout

    def ip_batch(self, lines: Iterable[str]) -> None:
        """Run many commands of ip(8) at once."""
        self.host.run(["ip", "-batch", "-"], input="".join(f"{line}\n" for line in lines), timeout=60)

    def with_netlink(self, work: Callable[[NftSocket], T]) -> T:
        """Do something with a netlink socket of this namespace."""

        def inside() -> T:
            with contextlib.closing(NftSocket()) as netlink:
                return work(netlink)

        return self.host.call(inside)

    def with_nft(self, work: Callable[[Nft], Awaitable[T]]) -> T:
        """Do something with the service's own nft."""
        return self.with_netlink(lambda netlink: asyncio.run(_await(work(Nft(netlink)))))

    def with_routes(self, work: Callable[[RouteSocket], Awaitable[T]]) -> T:
        """Do something with a socket that changes links, addresses, routes and rules."""

        async def inside() -> T:
            with contextlib.closing(RouteSocket()) as socket:
                return await work(socket)

        return self.host.call(lambda: asyncio.run(inside()))


async def _await(work: Awaitable[T]) -> T:
    return await work


@contextlib.contextmanager
def open_kernel() -> Iterator[Kernel]:
    """A namespace for one test."""
    with (
        tempfile.TemporaryDirectory(prefix="psiphon-kernel-") as directory,
        open_host("kernel", directory=Path(directory)) as host,
    ):
        yield Kernel(host)
