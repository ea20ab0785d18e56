# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The connection to QEMU, with a stand-in for QEMU at its other end."""

from __future__ import annotations

import errno
import json
import os
import socket
import threading

import pytest

from psiphon_lab.namespace import LabError
from psiphon_lab.qemu_monitor import Monitor


def answer(end: socket.socket) -> None:
    """Greet, and answer each command with its own name; refuse "no"."""
    with end, end.makefile("rwb", buffering=0) as stream:
        stream.write(b'{"QMP": {}}\n')
        for line in stream:
            name = json.loads(line)["execute"]
            said = {"error": {"desc": "refused"}} if name == "no" else {"return": name}
            stream.write(json.dumps(said).encode() + b"\n")


def test_a_closed_connection_leaves_nothing_open() -> None:
    near, far = socket.socketpair()
    answering = threading.Thread(target=answer, args=(far,))
    answering.start()
    number = near.fileno()
    monitor = Monitor(near)
    assert monitor.execute("stop") == "stop"
    with pytest.raises(LabError, match="refused"):
        monitor.execute("no")
    monitor.close()
    answering.join()
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        os.fstat(number)
