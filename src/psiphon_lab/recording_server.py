# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A server of the laboratory that records its TCP connections, as JSON lines, for the judge and for tests."""

from __future__ import annotations

import json
import subprocess
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from psiphon_lab.judge import Flow


def record_connection(record: Path, caller: tuple[Any, ...], own: tuple[Any, ...], **more: Any) -> None:
    """Add a line to the record.

    Args:
        record: the file.
        caller: the far end's address and port, as `socket.getpeername` gives them.
        own: this end's, as `socket.getsockname` gives them.
        more: what else to record.
    """
    line = {"client": caller[0], "client_port": caller[1], "server": own[0], "server_port": own[1], **more}
    with record.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")


class RecordingServer(ABC):
    """Starts and stops the server's process, and reads what it recorded."""

    def __init__(self, record: Path) -> None:
        self.record = record
        self._child: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def spawn(self) -> subprocess.Popen[bytes]:
        """Start the process; returns when the server listens."""

    def start(self) -> None:
        """Start the server and wait until it listens."""
        self._child = self.spawn()

    def stop(self) -> None:
        """Kill the server: its host refuses connections then."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None

    def read_record(self) -> list[dict[str, Any]]:
        """What was recorded so far."""
        lines = self.record.read_text(encoding="utf-8").splitlines() if self.record.exists() else []
        return [json.loads(line) for line in lines]

    def read_flows(self) -> frozenset[Flow]:
        """The recorded connections."""
        return frozenset(
            Flow(
                protocol=6,
                client=line["client"],
                client_port=line["client_port"],
                server=line["server"],
                server_port=line["server_port"],
            )
            for line in self.read_record()
        )
