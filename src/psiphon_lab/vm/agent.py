# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The laboratory's agent in a virtual computer: runs programs for the laboratory, over ports of a virtio console.

Each port carries one program at a time (see `channel.py` for its other end). It runs with the system's own Python, uses
the standard library only, and imports little, because an emulated processor is slow.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import struct
import subprocess
import threading
from pathlib import Path
from typing import Any

MAGIC = b"PVLF"
HEADER = struct.Struct("!4sIcI")
"""Magic, session, kind, length of what follows."""
HELLO, REQUEST, STDIN, END, STDOUT, STDERR, EXIT = b"h", b"r", b"i", b"e", b"o", b"x", b"q"
CHUNK = 16384
PORT_PREFIX = "lab."
_PORTS = Path("/sys/class/virtio-ports")


def pack(session: int, kind: bytes, data: bytes = b"") -> bytes:
    """A frame of a port."""
    return HEADER.pack(MAGIC, session, kind, len(data)) + data


class Reader:
    """Takes frames out of a stream. It begins again at the next magic after anything else."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, bytes, bytes]]:
        """The frames that are complete with these bytes: session, kind, content."""
        self._data += data
        found: list[tuple[int, bytes, bytes]] = []
        while True:
            begin = self._data.find(MAGIC)
            if begin < 0:
                del self._data[: max(len(self._data) - len(MAGIC) + 1, 0)]
                return found
            del self._data[:begin]
            if len(self._data) < HEADER.size:
                return found
            _magic, session, kind, size = HEADER.unpack_from(self._data)
            if len(self._data) < HEADER.size + size:
                return found
            found.append((session, kind, bytes(self._data[HEADER.size : HEADER.size + size])))
            del self._data[: HEADER.size + size]


class _Port:
    """Serves one port for ever."""

    def __init__(self, path: str) -> None:
        self._port = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._reader = Reader()
        self._session = 0
        self._child: subprocess.Popen[bytes] | None = None
        self._unsent = bytearray()
        self._no_more = False
        self._open: dict[int, bytes] = {}

    def serve(self) -> None:
        while True:
            poll = select.poll()
            poll.register(self._port, select.POLLIN)
            for descriptor in self._open:
                poll.register(descriptor, select.POLLIN)
            stdin = self._child.stdin if self._child is not None else None
            if stdin is not None and self._unsent:
                poll.register(stdin.fileno(), select.POLLOUT)
            for descriptor, event in poll.poll():
                if descriptor == self._port:
                    if event & select.POLLIN:
                        self._take()
                    else:  # nobody is connected outside, as during a shutdown
                        threading.Event().wait(0.2)
                elif descriptor in self._open:
                    self._pass_on(descriptor)
                else:
                    self._feed_child()

    def _take(self) -> None:
        for session, kind, data in self._reader.feed(os.read(self._port, CHUNK)):
            if kind == HELLO:
                self._forget()
                self._session = session
                self._say(HELLO)
            elif session != self._session:
                continue
            elif kind == REQUEST:
                self._start(json.loads(data))
            elif kind == STDIN:
                self._unsent += data
            elif kind == END:
                self._no_more = True
                self._feed_child()

    def _start(self, request: dict[str, Any]) -> None:
        self._unsent.clear()
        self._no_more = False
        try:
            self._child = subprocess.Popen(
                request["argv"],
                env=request["env"],
                cwd=request["cwd"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            self._say(STDERR, f"{error}\n".encode())
            self._say(EXIT, b"127")
            return
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        assert self._child.stderr is not None
        os.set_blocking(self._child.stdin.fileno(), False)
        self._open = {self._child.stdout.fileno(): STDOUT, self._child.stderr.fileno(): STDERR}

    def _feed_child(self) -> None:
        if self._child is None or self._child.stdin is None:
            return
        if self._unsent:
            try:
                del self._unsent[: os.write(self._child.stdin.fileno(), self._unsent[:CHUNK])]
            except BlockingIOError:
                return
            except OSError:  # it does not read any more
                self._unsent.clear()
                self._no_more = True
        if self._no_more and not self._unsent:
            with contextlib.suppress(OSError):
                self._child.stdin.close()
            self._child.stdin = None

    def _pass_on(self, descriptor: int) -> None:
        data = os.read(descriptor, CHUNK)
        if data:
            self._say(self._open[descriptor], data)
            return
        del self._open[descriptor]
        if self._open or self._child is None:
            return
        code = self._child.wait()
        self._close(self._child)
        self._child = None
        self._say(EXIT, str(code if code >= 0 else 128 - code).encode())

    def _forget(self) -> None:
        """End what the last client has left."""
        if self._child is not None:
            with contextlib.suppress(OSError):
                os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()
            self._close(self._child)
        self._child, self._open = None, {}

    @staticmethod
    def _close(child: subprocess.Popen[bytes]) -> None:
        for stream in (child.stdin, child.stdout, child.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _say(self, kind: bytes, data: bytes = b"") -> None:
        rest = pack(self._session, kind, data)
        while rest:
            try:
                rest = rest[os.write(self._port, rest) :]
            except OSError:  # nobody is connected outside
                return


def main() -> None:
    """Serve every port of the laboratory."""
    for entry in sorted(_PORTS.iterdir()):
        if (entry / "name").read_text().startswith(PORT_PREFIX):
            threading.Thread(target=_Port(f"/dev/{entry.name}").serve).start()


if __name__ == "__main__":
    main()
