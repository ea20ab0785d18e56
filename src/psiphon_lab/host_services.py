# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Services on lab hosts: web page, DNS, echo, time. Run as `python -m psiphon_lab.host_services --role ROLE ...`.

The role "internet" has all of them, "resolver" only DNS. Each request becomes a JSON line in the --record file, so that
a test can find out which query reached which resolver. It prints "ready" on standard output once everything listens.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import struct
import sys
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import IO, Any, cast

from psiphon_lab import addresses
from psiphon_lab.dns_message import (
    AAAA,
    NAME_ERROR,
    NS,
    TXT,
    TYPE_NAMES,
    A,
    Question,
    encode_answer,
    read_question,
)

ROOT_SERVER, ROOT_SERVER4 = "a.root-servers.net", "198.41.0.4"  # what `diagnose` asks for
NTP_EPOCH = 2208988800  # seconds from 1900 to 1970, RFC 5905
IDLE_LIMIT = 30.0
EVERYWHERE = ["0.0.0.0", "::"]  # noqa: S104 - a host of the laboratory, in a namespace of its own


class Recorder:
    """Appends JSON lines, each with one write, so that readers never see part of a line."""

    def __init__(self, stream: IO[str] | None) -> None:
        self._stream = stream

    def record(self, **fields: object) -> None:
        """Append one line, with the time."""
        if self._stream is not None:
            self._stream.write(json.dumps({"time": time.time(), **fields}) + "\n")
            self._stream.flush()


def plain_address(address: str) -> str:
    """An address without scope, and IPv4 if it is IPv4-mapped."""
    unscoped = address.partition("%")[0]
    return unscoped.removeprefix("::ffff:") if "." in unscoped else unscoped


def answer_query(
    message: bytes, caller: str, mark: str, lies: Mapping[str, str] = MappingProxyType({})
) -> tuple[bytes, Question] | None:
    """The response to one query, or None if it is not one. lies: IPv4 addresses by name, instead of the truth."""
    question = read_question(message)
    if question is None:
        return None
    values: list[str] = []
    zone = f".{addresses.ZONE}"
    if question.name in lies:
        values = [lies[question.name]] if question.kind == A else []
    elif f".{question.name}".endswith(f".{addresses.RESOLVER_NAME}") and question.kind == TXT:
        values = [mark]
    elif question.name == addresses.WHOAMI_NAME and question.kind == TXT:
        values = [caller]
    elif question.name == "" and question.kind == NS:
        values = ["a.root-servers.lab"]  # the query by which the service checks whether a root server answers
    elif question.name == addresses.LIST_NAME and question.kind in (A, AAAA):
        values = [addresses.LIST_HOST4 if question.kind == A else addresses.LIST_HOST6]
    elif question.name.endswith(zone) and question.kind == A:
        values = [addresses.INTERNET4]
    elif question.name.endswith(zone) and question.kind == AAAA:
        values = [addresses.INTERNET6]
    elif question.name == ROOT_SERVER and question.kind == A:
        values = [ROOT_SERVER4]
    known = bool(values) or question.name.endswith(zone) or question.name in {"", ROOT_SERVER}
    return encode_answer(question, values, rcode=0 if known else NAME_ERROR), question


class UdpService(asyncio.DatagramProtocol):
    """A UDP service that answers each datagram with `answer(data, caller)`, unless that is None."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        """Called by asyncio for each datagram."""
        reply = self._answer(data, addr)
        if reply is not None and self._transport is not None:
            self._transport.sendto(reply, addr)


def answer_time(data: bytes, _: Any) -> bytes | None:
    """An NTP server's packet (RFC 5905) with the present time."""
    if len(data) < 48:
        return None
    now = time.time() + NTP_EPOCH
    stamp = struct.pack("!II", int(now), int((now % 1) * 2**32))
    return b"\x24\x01\x00\xec" + bytes(12) + stamp + data[40:48] + stamp + stamp


class Services:
    """The services of one host, with a common recorder."""

    def __init__(self, recorder: Recorder, mark: str, lies: Mapping[str, str] = MappingProxyType({})) -> None:
        self._recorder = recorder
        self._mark = mark
        self._lies = lies

    def answer_dns_datagram(self, data: bytes, caller: Any) -> bytes | None:
        """DNS over UDP."""
        return self._answer_dns(data, caller, "udp")

    def _answer_dns(self, data: bytes, caller: Any, transport: str) -> bytes | None:
        address = plain_address(caller[0])
        answered = answer_query(data, address, self._mark, self._lies)
        if answered is None:
            return None
        reply, question = answered
        self._recorder.record(
            service="dns",
            transport=transport,
            caller=address,
            port=caller[1],
            name=question.name,
            kind=TYPE_NAMES.get(question.kind, str(question.kind)),
            poisoned=question.name in self._lies,
        )
        return reply

    async def serve_dns(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """DNS over TCP."""
        try:
            while True:
                length = struct.unpack("!H", await asyncio.wait_for(reader.readexactly(2), IDLE_LIMIT))[0]
                reply = self._answer_dns(await reader.readexactly(length), writer.get_extra_info("peername"), "tcp")
                if reply is None:
                    return
                writer.write(struct.pack("!H", len(reply)) + reply)
                await writer.drain()
        except (OSError, EOFError, TimeoutError):
            pass
        finally:
            writer.close()

    async def serve_page(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve any page: a JSON object with the client's address."""
        caller = writer.get_extra_info("peername")
        try:
            request = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), IDLE_LIMIT)
            line = request.split(b"\r\n", 1)[0].decode("ascii", "replace")
            body = json.dumps({"address": plain_address(caller[0]), "port": caller[1], "request": line}).encode()
            self._recorder.record(service="http", caller=plain_address(caller[0]), port=caller[1], request=line)
            head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            writer.write(f"{head}Connection: close\r\n\r\n".encode() + body)
            await writer.drain()
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()

    async def serve_echo(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """RFC 862 over TCP."""
        caller = writer.get_extra_info("peername")
        self._recorder.record(service="echo", transport="tcp", caller=plain_address(caller[0]), port=caller[1])
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    def answer_echo(self, data: bytes, caller: Any) -> bytes:
        """RFC 862 over UDP."""
        self._recorder.record(service="echo", transport="udp", caller=plain_address(caller[0]), port=caller[1])
        return data


def listen(kind: socket.SocketKind, address: str, port: int) -> socket.socket:
    """A bound, non-blocking socket; if the address is IPv6, it is IPv6-only."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind((address, port))
    sock.setblocking(False)
    return sock


async def serve(role: str, bind: list[str], services: Services, *, dns_port: int = 53) -> None:
    """Start every service of `role` on each address of `bind`, print "ready", and serve for ever."""
    loop = asyncio.get_running_loop()
    streams: list[tuple[int, Any]] = [(dns_port, services.serve_dns)]
    datagrams: list[tuple[int, Any]] = [(dns_port, services.answer_dns_datagram)]
    if role == "internet":
        streams += [(80, services.serve_page), (7, services.serve_echo)]
        datagrams += [(123, answer_time), (7, services.answer_echo)]
    for address in bind:
        for port, handler in streams:
            await asyncio.start_server(handler, sock=listen(socket.SOCK_STREAM, address, port), backlog=1024)
        for port, answer in datagrams:
            sock = listen(socket.SOCK_DGRAM, address, port)
            await loop.create_datagram_endpoint(lambda answer=answer: UdpService(answer), sock=sock)  # type: ignore[misc]
    os.write(1, b"ready\n")
    await asyncio.Event().wait()


def main(argv: list[str] | None = None) -> int:
    """Command line entry. Ends only by a signal."""
    parser = argparse.ArgumentParser(prog="psiphon_lab.host_services", description=__doc__)
    parser.add_argument("--role", choices=("internet", "resolver"), required=True)
    parser.add_argument("--mark", default=addresses.MARK_INTERNET, help="TXT answer that identifies the resolver")
    parser.add_argument("--bind", action="append", default=[], help="address to listen on, repeatable")
    parser.add_argument("--dns-port", type=int, default=53)
    parser.add_argument("--poison", action="append", default=[], help="NAME=ADDRESS: a lie, repeatable")
    parser.add_argument("--record", help="file for one JSON line per request")
    options = parser.parse_args(argv)
    stream = open(options.record, "a", encoding="utf-8") if options.record else None  # noqa: SIM115 - for ever
    lies = dict(lie.split("=", 1) for lie in options.poison)
    services = Services(Recorder(stream), options.mark, lies)
    asyncio.run(serve(options.role, options.bind or EVERYWHERE, services, dns_port=options.dns_port))
    return 0


if __name__ == "__main__":
    sys.exit(main())
