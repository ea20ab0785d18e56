# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The stand-in core's notices, in the real core's format: one JSON object per line, one write per notice."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime

DIAGNOSTIC = frozenset(
    "Info Warning Error CandidateServers ConnectingServer ConnectedServer ActiveTunnel SessionId BuildInfo"
    " TotalBytesTransferred LocalProxyError".split()
)

JUNK = (
    b"panic: runtime error: invalid memory address or nil pointer dereference\n",
    b"goroutine 1 [running]:\n",
    b'{"noticeType":"Tunnels","data":{"count":\n',
    b'{"noticeType":"Tunnels","data":{"count":"1"},"timestamp":"2026-01-01T00:00:00.000Z"}\n',
    b'{"noticeType":"Tunnels","data":{"count":true},"timestamp":"2026-01-01T00:00:00.000Z"}\n',
    b'{"noticeType":"Tunnels","data":{"count":1e400},"timestamp":"2026-01-01T00:00:00.000Z"}\n',
    b'{"noticeType":"Tunnels","data":{"count":-1},"timestamp":"2026-01-01T00:00:00.000Z"}\n',
    b'{"noticeType":"Tunnels","data":null}\n',
    b'{"noticeType":["Tunnels"],"data":[1]}\n',
    b'{"noticeType":"InternalError","data":{"message":"not "escaped" at all"}}\n',
    b"[]\n",
    b"null\n",
    b"1\n",
    b"\n",
    b"\x00\xff\xfe\x1b[2J\x07\r\n",
    b"[" * 5000 + b"\n",
)


class Notices:
    """Writes notices to standard error. A full pipe blocks the whole process, as with the real core."""

    def __init__(self) -> None:
        self.diagnostic = False
        self.silent = False

    def emit(self, kind: str, *, forced: bool = False, **data: object) -> None:
        """Write one notice; a diagnostic one only if the configuration enables them, or if forced."""
        if self.silent or (kind in DIAGNOSTIC and not self.diagnostic and not forced):
            return
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
        text = json.dumps({"data": data, "noticeType": kind, "timestamp": stamp}, separators=(",", ":"))
        for character in "<>&":  # Go's encoder escapes these
            text = text.replace(character, f"\\u{ord(character):04x}")
        self.write(text.encode() + b"\n")

    def write(self, line: bytes) -> None:
        """Write raw bytes, in one call if the pipe takes them."""
        try:
            while line:
                line = line[os.write(2, line) :]
        except BrokenPipeError:
            os.kill(os.getpid(), 13)  # a Go program dies of SIGPIPE if standard error is a closed pipe
        except OSError:
            pass  # closed by a fault
