# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A proxy on the internet: HTTP CONNECT (RFC 9110, 9.3.6) and SOCKS 5 (RFC 1928) on one port, with a password or none.

Run as `python -m psiphon_lab.proxy_host`. It records each connection once when it comes, and once more with what
it was asked for. A password comes on standard input.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import ipaddress
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from psiphon_lab import addresses as plan
from psiphon_lab.recording_server import RecordingServer, record_connection
from psiphon_lab.standin_socks import pump
from psiphon_lab.waiting import wait_ready
from psiphon_lab.world import World

PORT = 3128
HOSTS = {plan.LIST_NAME: plan.LIST_HOST4}
"""The names that the proxy knows."""
USER, PASSWORD = "somebody", "s@cret:word"
"""User and password of a proxy that wants some. Both contain characters that a URL must escape."""
CONNECT_SECONDS = 10.0


class RefusedError(Exception):
    """The proxy does not connect. The text is its answer."""

    def __init__(self, answer: bytes) -> None:
        super().__init__(answer)
        self.answer = answer


@dataclass(frozen=True)
class _Proxy:
    """What one proxy asks for, and its record."""

    secret: str
    """"user:password", or "" for none."""
    record: Path

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        caller, own = writer.get_extra_info("peername"), writer.get_extra_info("sockname")
        record_connection(self.record, caller, own, target=None)
        with contextlib.suppress(OSError, EOFError, ValueError, TimeoutError, asyncio.LimitOverrunError):
            try:
                first = await reader.readexactly(1)
                ask = self._read_socks if first == b"\x05" else self._read_http
                target, yes, no = await ask(first, reader, writer)
                record_connection(self.record, caller, own, target=list(target))
                try:
                    async with asyncio.timeout(CONNECT_SECONDS):
                        host, port = target
                        far_reader, far_writer = await asyncio.open_connection(HOSTS.get(host, host), port)
                except (OSError, TimeoutError) as error:
                    record_connection(self.record, caller, own, target=None, failed=repr(error))
                    raise RefusedError(no) from error
                writer.write(yes)
                await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))
            except RefusedError as refused:
                writer.write(refused.answer)
                await writer.drain()
        writer.close()

    async def _read_http(
        self, first: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[tuple[str, int], bytes, bytes]:
        head = await self._read_head(first, reader)
        while self.secret and not self._knows(head):
            # A client may ask first what is wanted, and again on the same connection (RFC 9110, 11.7.1).
            writer.write(
                b"HTTP/1.1 407 Proxy Authentication Required\r\n"
                b'Proxy-Authenticate: Basic realm="laboratory"\r\nContent-Length: 0\r\n\r\n'
            )
            head = await self._read_head(b"", reader)
        method, address, _version = head[0].split(" ")
        if method != "CONNECT":
            raise RefusedError(b"HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n")
        host, _, port = address.rpartition(":")
        target = host.strip("[]"), int(port)
        return target, b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"

    async def _read_head(self, first: bytes, reader: asyncio.StreamReader) -> list[str]:
        return (first + await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")

    def _knows(self, head: list[str]) -> bool:
        wanted = "Basic " + base64.b64encode(self.secret.encode()).decode()
        return any(
            line.partition(":")[2].strip() == wanted for line in head if line.lower().startswith("proxy-authorization:")
        )

    async def _read_socks(
        self, _first: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[tuple[str, int], bytes, bytes]:
        methods = await reader.readexactly((await reader.readexactly(1))[0])
        method = 2 if self.secret else 0
        if method not in methods:
            raise RefusedError(b"\x05\xff")
        writer.write(bytes([5, method]))
        if self.secret:
            await reader.readexactly(1)
            user = await reader.readexactly((await reader.readexactly(1))[0])
            password = await reader.readexactly((await reader.readexactly(1))[0])
            if f"{user.decode()}:{password.decode()}" != self.secret:
                raise RefusedError(b"\x01\x01")
            writer.write(b"\x01\x00")
        _version, _command, _zero, kind = await reader.readexactly(4)
        if kind == 3:
            host = (await reader.readexactly((await reader.readexactly(1))[0])).decode("ascii")
        else:
            host = str(ipaddress.ip_address(await reader.readexactly(4 if kind == 1 else 16)))
        target = host, struct.unpack("!H", await reader.readexactly(2))[0]
        return target, b"\x05\x00\x00\x01" + bytes(6), b"\x05\x05\x00\x01" + bytes(6)


class ProxyHost(RecordingServer):
    """A proxy on the internet's host, at IPv4 and IPv6.

    Attributes:
        addresses: of the proxy.
    """

    def __init__(self, world: World, *, password: bool) -> None:
        super().__init__(world.directory / "proxy.jsonl")
        self._world = world
        self._secret = f"{USER}:{PASSWORD}" if password else ""
        self.addresses = (plan.INTERNET4, plan.INTERNET6)

    def spawn(self) -> subprocess.Popen[bytes]:
        """Start the proxy's process."""
        child = self._world.internet.spawn_module(
            "psiphon_lab.proxy_host", "--record", str(self.record), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert child.stdin is not None
        child.stdin.write(self._secret.encode())
        child.stdin.close()
        wait_ready(child, "the proxy")
        return child

    def read_targets(self) -> list[tuple[str, int]]:
        """What the proxy was asked to connect to."""
        return [tuple(line["target"]) for line in self.read_record() if line["target"]]


@contextlib.contextmanager
def run_proxy(world: World, *, password: bool = False) -> Iterator[ProxyHost]:
    """A proxy that listens when the block begins. password: whether it wants user and password."""
    proxy = ProxyHost(world, password=password)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()


async def _run(proxy: _Proxy) -> None:
    servers = [await asyncio.start_server(proxy.serve, address, PORT) for address in (plan.INTERNET4, plan.INTERNET6)]
    os.write(1, b"ready\n")
    await asyncio.gather(*(server.serve_forever() for server in servers))


def main(argv: list[str] | None = None) -> int:
    """Command line entry. Ends only by a signal."""
    parser = argparse.ArgumentParser(prog="psiphon_lab.proxy_host", description=__doc__)
    parser.add_argument("--record", type=Path, required=True)
    options = parser.parse_args(argv)
    secret = sys.stdin.buffer.read().decode()
    asyncio.run(_run(_Proxy(secret=secret, record=options.record)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
