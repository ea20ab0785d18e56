# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The stand-in core's local proxy: SOCKS5 (RFC 1928) and SOCKS4/4a, CONNECT only, no authentication."""

from __future__ import annotations

import asyncio
import ipaddress
import struct
from collections.abc import Awaitable, Callable

Pipe = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Connect = Callable[[str, int], Awaitable[Pipe]]
NEGOTIATION_LIMIT = 10.0


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy one direction to its end, then close the writer."""
    try:
        while chunk := await reader.read(65536):
            writer.write(chunk)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


async def _read_target5(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[str, int]:
    await reader.readexactly((await reader.readexactly(1))[0])
    writer.write(b"\x05\x00")
    version, command, _, kind = await reader.readexactly(4)
    if version != 5 or command != 1:
        raise ValueError("only CONNECT")
    if kind == 1:
        host = str(ipaddress.IPv4Address(await reader.readexactly(4)))
    elif kind == 4:
        host = str(ipaddress.IPv6Address(await reader.readexactly(16)))
    elif kind == 3:
        host = (await reader.readexactly((await reader.readexactly(1))[0])).decode("ascii")
    else:
        raise ValueError("address type")
    return host, struct.unpack("!H", await reader.readexactly(2))[0]


async def _read_target4(reader: asyncio.StreamReader) -> tuple[str, int]:
    command, port = struct.unpack("!BH", await reader.readexactly(3))
    address = await reader.readexactly(4)
    await reader.readuntil(b"\0")
    if command != 1:
        raise ValueError("only CONNECT")
    if address[:3] == b"\0\0\0" and address[3]:
        return (await reader.readuntil(b"\0"))[:-1].decode("ascii"), port
    return str(ipaddress.IPv4Address(address)), port


async def serve_socks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connect: Connect) -> None:
    """Serve one client of the proxy. connect: opens the connection to the target, or raises OSError."""
    try:
        version = (await asyncio.wait_for(reader.readexactly(1), NEGOTIATION_LIMIT))[0]
        if version not in (4, 5):
            return
        target = _read_target5(reader, writer) if version == 5 else _read_target4(reader)
        host, port = await asyncio.wait_for(target, NEGOTIATION_LIMIT)
        try:
            far_reader, far_writer = await connect(host, port)
        except (OSError, TimeoutError):
            writer.write(b"\x05\x01\0\x01\0\0\0\0\0\0" if version == 5 else b"\0\x5b\0\0\0\0\0\0")
            await writer.drain()
            return
        writer.write(b"\x05\0\0\x01\0\0\0\0\0\0" if version == 5 else b"\0\x5a\0\0\0\0\0\0")
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))
    except (OSError, EOFError, TimeoutError, ValueError, UnicodeDecodeError, asyncio.LimitOverrunError):
        pass
    finally:
        writer.close()
