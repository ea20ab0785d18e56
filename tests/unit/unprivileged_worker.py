# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What a parser would try after hostile input has taken it over."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Sequence


def _attempt(deed: Callable[[], object]) -> str:
    try:
        deed()
    except OSError as error:
        return f"refused ({error.errno})"
    return "done"


def _open_after_close() -> int:
    os.close(2)
    return os.open("/etc/passwd", os.O_RDONLY)


def work(argv: Sequence[str], content: bytes) -> bytes:
    """Do what the first argument says."""
    match argv[0]:
        case "echo":
            return content
        case "deeds":
            deeds: dict[str, Callable[[], object]] = {
                "open": lambda: os.open("/etc/passwd", os.O_RDONLY),
                "open in the place of another": _open_after_close,
                "socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
                "unix": lambda: socket.socket(socket.AF_UNIX),
                "pipe": os.pipe,
                "memory file": lambda: os.memfd_create("x"),
                "fork": os.fork,
                "root": lambda: os.setuid(0),
                "signal": lambda: os.kill(os.getppid(), 0),
            }
            found = {name: _attempt(deed) for name, deed in deeds.items()}
            return json.dumps(
                {"uid": os.getresuid(), "gid": os.getresgid(), "groups": os.getgroups(), **found}
            ).encode()
        case "memory":
            return b"x" * len(bytearray(4 << 30))
        case "output":
            return b"x" * (3 << 20)
        case "spin":
            while True:
                pass
        case _:
            raise ValueError("no such deed")
