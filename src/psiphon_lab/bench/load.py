# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""An application's load, on the client: `python -m psiphon_lab.bench.load KIND JSON`, which prints JSON.

It samples the processor time of the core itself, at the moments between which it counts bytes.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from psiphon_lab import addresses as plan
from psiphon_lab.bench import ports
from psiphon_lab.bench.far_end import raise_file_limit
from psiphon_lab.bench.processor import read_processor_time
from psiphon_lab.dns_message import A, encode_query

SO_BINDTODEVICE = 25
CONNECT_SECONDS = 20.0
HOLD_AT_ONCE = 128
LOST_SECONDS = 0.1
"""After such a time without an answer, what is on its way counts as lost."""
_BYTES_ACKED = slice(120, 128)
"""tcpi_bytes_acked of struct tcp_info (<linux/tcp.h>)."""
TCP_INFO_SIZE = 232


def _open(
    kind: socket.SocketKind, options: dict[str, Any], port: int, address: str | None = None, *, wait: bool = True
) -> socket.socket:
    family = socket.AF_INET if options["family"] == 4 else socket.AF_INET6
    sock = socket.socket(family, kind)
    if options["device"]:
        sock.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, options["device"].encode() + b"\0")
    sock.settimeout(CONNECT_SECONDS if wait else 0)
    with contextlib.suppress(BlockingIOError):
        sock.connect((address or (plan.INTERNET4 if options["family"] == 4 else plan.INTERNET6), port))
    return sock


class Flow:
    """One flow of a transfer. count: the bytes that have arrived so far."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._received = 0
        self._direction = options["direction"]
        self._tcp = options["protocol"] == "tcp"
        down = self._direction == "down"
        kind = socket.SOCK_STREAM if self._tcp else socket.SOCK_DGRAM
        port = {(True, True): ports.TCP_SOURCE, (True, False): ports.TCP_SINK,
                (False, True): ports.UDP_SOURCE, (False, False): ports.UDP_SINK}[self._tcp, down]  # fmt: skip
        self._sock = _open(kind, options, port)
        run: Callable[[], None] = {
            (True, True): self._take, (True, False): self._give,
            (False, True): self._ask, (False, False): self._send,
        }[self._tcp, down]  # fmt: skip
        threading.Thread(target=self._run, args=(run,), daemon=True).start()

    def count(self) -> int:
        """The bytes so far, as the receiver has them."""
        if self._tcp and self._direction == "up":
            info = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_SIZE)
            return int(struct.unpack("=Q", info[_BYTES_ACKED])[0])
        return self._received

    def _run(self, run: Callable[[], None]) -> None:
        with contextlib.suppress(OSError):  # the far end, or the process, has ended
            run()

    def _take(self) -> None:
        buffer = bytearray(1 << 18)
        while got := self._sock.recv_into(buffer):
            self._received += got

    def _give(self) -> None:
        chunk = bytes(1 << 16)
        while True:
            self._sock.sendall(chunk)

    def _ask(self) -> None:
        """Receive datagrams, and allow as many more as have arrived, or are lost."""
        self._sock.settimeout(LOST_SECONDS)
        allowed, got = ports.WINDOW, 0
        self._sock.send(ports.COUNT.pack(allowed))
        while True:
            try:
                self._received += len(self._sock.recv(65536))
                got += 1
                if got % ports.ACK_EVERY:
                    continue
                allowed += ports.ACK_EVERY
            except TimeoutError:
                allowed += ports.WINDOW
            self._sock.send(ports.COUNT.pack(allowed))

    def _send(self) -> None:
        """Send datagrams, never more than a window beyond what the far end has reported."""
        self._sock.settimeout(LOST_SECONDS)
        payload = bytes(ports.DATAGRAM)
        sent = lost = reported = 0
        while True:
            while sent - reported - lost < ports.WINDOW:
                with contextlib.suppress(OSError):
                    self._sock.send(payload)
                sent += 1
            try:
                reported = max(reported, ports.COUNT.unpack(self._sock.recv(64))[0])
                self._received = reported * ports.DATAGRAM
            except TimeoutError:
                lost = sent - reported


def transfer(options: dict[str, Any]) -> dict[str, float]:
    """Transfer for some time; bytes, seconds, and processor time of the core and of this process, in seconds."""
    flows = [Flow(options) for _ in range(options["flows"])]
    time.sleep(options["warm"])

    def sample() -> tuple[float, int, float, float]:
        core = read_processor_time(options["pid"])
        return time.monotonic(), sum(flow.count() for flow in flows), core, time.process_time()

    before = sample()
    time.sleep(options["seconds"])
    seconds, count, core, own = (after - earlier for earlier, after in zip(before, sample(), strict=True))
    return {"bytes": count, "seconds": seconds, "core": core, "own": own}


def ping(options: dict[str, Any]) -> dict[str, list[float]]:
    """Round trips of a small datagram, one after the other; milliseconds. Lost ones are left out."""
    times = []
    with _open(socket.SOCK_DGRAM, options, ports.UDP_ECHO) as sock:
        sock.settimeout(1.0)
        for number in range(options["count"]):
            message = ports.COUNT.pack(number)
            begin = time.perf_counter()
            sock.send(message)
            with contextlib.suppress(TimeoutError):
                while sock.recv(64) != message:
                    pass
                times.append((time.perf_counter() - begin) * 1000)
    return {"times": times}


def _repeat(options: dict[str, Any], once: Callable[[], bool]) -> dict[str, float]:
    """Do something again and again in several threads; how often it worked and failed, and in how many seconds."""
    worked, failed = itertools.count(), itertools.count()
    until = time.monotonic() + options["seconds"]

    def work() -> None:
        while time.monotonic() < until:
            try:
                done = once()
            except OSError:
                done = False
            next(worked if done else failed)

    before, begin = read_processor_time(options["pid"]), time.monotonic()
    threads = [threading.Thread(target=work) for _ in range(options["workers"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - begin
    core = read_processor_time(options["pid"]) - before
    return {"worked": next(worked), "failed": next(failed), "seconds": seconds, "core": core}


def connect(options: dict[str, Any]) -> dict[str, float]:
    """Open connections, read one byte, close."""

    def once() -> bool:
        with _open(socket.SOCK_STREAM, options, ports.TCP_GREET) as sock:
            return sock.recv(1) == b"k"

    return _repeat(options, once)


def query(options: dict[str, Any]) -> dict[str, float]:
    """Ask the resolver. options: `resolver` too."""
    numbers = itertools.count(1)

    def once() -> bool:
        number = next(numbers) & 0xFFFF
        with _open(socket.SOCK_DGRAM, options, 53, options["resolver"]) as sock:
            sock.settimeout(2.0)
            sock.send(encode_query(number, f"n{number}.{plan.ZONE}", A))
            return sock.recv(4096)[:2] == number.to_bytes(2, "big")

    return _repeat(options, once)


def hold(options: dict[str, Any]) -> dict[str, int]:
    """Open connections, say so by a line "ready", and keep them until the standard input ends."""
    raise_file_limit()
    held: list[socket.socket] = []
    while missing := options["flows"] - len(held):
        group = [
            _open(socket.SOCK_STREAM, options, ports.TCP_HOLD, wait=False) for _ in range(min(missing, HOLD_AT_ONCE))
        ]
        for sock in group:
            sock.settimeout(CONNECT_SECONDS)
            sock.recv(1)  # waits for the connection too
        held += group
    os.write(1, b"ready\n")
    sys.stdin.read()
    return {"held": len(held)}


KINDS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "transfer": transfer,
    "ping": ping,
    "connect": connect,
    "query": query,
    "hold": hold,
}


def main() -> int:
    """Command line entry."""
    found = KINDS[sys.argv[1]](json.loads(sys.argv[2]))
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()
    os._exit(0)  # threads still send


if __name__ == "__main__":
    sys.exit(main())
