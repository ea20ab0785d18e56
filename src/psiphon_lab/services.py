"""The services of lab hosts: web page, DNS, echo, time. Run as `python -m psiphon_lab.services --role ROLE ...`.

Roles: "internet" has all of them; "resolver" only DNS. Every caller is recorded as a JSON line in the --record file,
so a test can ask which query reached which resolver. Prints "ready" on standard output once everything listens.
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
    """Appends JSON lines; one write each, so readers never see half a line."""

    def __init__(self, stream: IO[str] | None) -> None:
        self._stream = stream

    def record(self, **fields: object) -> None:
        """Append one line, with the time."""
        if self._stream is not None:
            self._stream.write(json.dumps({"time": time.time(), **fields}) + "\n")
            self._stream.flush()


def plain_address(address: str) -> str:
    """An IPv4-mapped or scoped address in its plain form."""
    unscoped = address.partition("%")[0]
    return unscoped.removeprefix("::ffff:") if "." in unscoped else unscoped


def answer_query(message: bytes, caller: str, mark: str) -> tuple[bytes, Question] | None:
    """The response to one query, or None if it is not one."""
    question = read_question(message)
    if question is None:
        return None
    values: list[str] = []
    zone = f".{addresses.ZONE}"
    if f".{question.name}".endswith(f".{addresses.RESOLVER_NAME}") and question.kind == TXT:
        values = [mark]
    elif question.name == addresses.WHOAMI_NAME and question.kind == TXT:
        values = [caller]
    elif question.name == "" and question.kind == NS:
        values = ["a.root-servers.lab"]  # what a root server is asked to see whether it answers at all
    elif question.name.endswith(zone) and question.kind == A:
        values = [addresses.INTERNET4]
    elif question.name.endswith(zone) and question.kind == AAAA:
        values = [addresses.INTERNET6]
    elif question.name == ROOT_SERVER and question.kind == A:
        values = [ROOT_SERVER4]
    known = bool(values) or question.name.endswith(zone) or question.name in {"", ROOT_SERVER}
    return encode_answer(question, values, rcode=0 if known else NAME_ERROR), question


class UdpService(asyncio.DatagramProtocol):
    """A UDP service that answers each datagram with `answer(data, caller)`, if that gives anything."""

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
    """A server packet of NTP (RFC 5905) with the present time."""
    if len(data) < 48:
        return None
    now = time.time() + NTP_EPOCH
    stamp = struct.pack("!II", int(now), int((now % 1) * 2**32))
    return b"\x24\x01\x00\xec" + bytes(12) + stamp + data[40:48] + stamp + stamp


class Services:
    """The services of one host, sharing a recorder."""

    def __init__(self, recorder: Recorder, mark: str) -> None:
        self._recorder = recorder
        self._mark = mark

    def answer_dns_datagram(self, data: bytes, caller: Any) -> bytes | None:
        """DNS over UDP."""
        return self._answer_dns(data, caller, "udp")

    def _answer_dns(self, data: bytes, caller: Any, transport: str) -> bytes | None:
        address = plain_address(caller[0])
        answered = answer_query(data, address, self._mark)
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
        """Any page: a JSON object that says who asked."""
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
    """A bound, non-blocking socket, IPv6-only where the address is IPv6."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind((address, port))
    sock.setblocking(False)
    return sock


async def serve(role: str, bind: list[str], services: Services) -> None:
    """Start every service of `role` on each of the addresses `bind`, say so, and serve for ever."""
    loop = asyncio.get_running_loop()
    streams: list[tuple[int, Any]] = [(53, services.serve_dns)]
    datagrams: list[tuple[int, Any]] = [(53, services.answer_dns_datagram)]
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
    parser = argparse.ArgumentParser(prog="psiphon_lab.services", description=__doc__)
    parser.add_argument("--role", choices=("internet", "resolver"), required=True)
    parser.add_argument("--mark", default=addresses.MARK_INTERNET, help="TXT answer for the resolver's own name")
    parser.add_argument("--bind", action="append", default=[], help="address to listen on, repeatable")
    parser.add_argument("--record", help="file for one JSON line a caller")
    options = parser.parse_args(argv)
    stream = open(options.record, "a", encoding="utf-8") if options.record else None  # noqa: SIM115 - for ever
    services = Services(Recorder(stream), options.mark)
    asyncio.run(serve(options.role, options.bind or EVERYWHERE, services))
    return 0


if __name__ == "__main__":
    sys.exit(main())
