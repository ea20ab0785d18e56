# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs a program in a virtual computer, as ssh(1) does on another: passes standard streams on, ends with its exit code.

It gets an open port as a descriptor (see `agent.py` for the other end) and the request as JSON.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from typing import Any, Final

from psiphon_lab.vm.agent import CHUNK, END, EXIT, HELLO, REQUEST, STDERR, STDIN, STDOUT, Reader, pack

LOST: Final = 255
"""Exit code if the agent is gone, like ssh's."""
HELLO_SECONDS: Final = 2.0


def run(port: int, request: dict[str, Any]) -> int:
    """Run a program in the computer; returns its exit code, or LOST."""
    reader = Reader()
    session = _greet(port, reader)
    _send(port, pack(session, REQUEST, json.dumps(request).encode()))
    listening = {port, 0}
    while True:
        ready, _, _ = select.select(listening, [], [])
        if 0 in ready:
            data = os.read(0, CHUNK)
            _send(port, pack(session, STDIN, data) if data else pack(session, END))
            if not data:
                listening.discard(0)
        if port not in ready:
            continue
        data = os.read(port, CHUNK)
        if not data:
            return LOST
        for theirs, kind, content in reader.feed(data):
            if theirs != session:
                continue
            if kind == EXIT:
                return int(content)
            if kind in (STDOUT, STDERR):
                _send(1 if kind == STDOUT else 2, content)


def _greet(port: int, reader: Reader) -> int:
    """Say hello until the agent answers: what is said while it is not there yet may be lost."""
    while True:
        # Of each client and time another, so that answers to an earlier one are not taken for these.
        session = int.from_bytes(os.urandom(4), "big")
        _send(port, pack(session, HELLO))
        deadline = time.monotonic() + HELLO_SECONDS
        while (left := deadline - time.monotonic()) > 0:
            if not select.select([port], [], [], left)[0]:
                break
            data = os.read(port, CHUNK)
            if not data:
                raise SystemExit(LOST)
            if any(theirs == session and kind == HELLO for theirs, kind, _content in reader.feed(data)):
                return session


def _send(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


if __name__ == "__main__":
    sys.exit(run(int(sys.argv[1]), json.loads(sys.argv[2])))
