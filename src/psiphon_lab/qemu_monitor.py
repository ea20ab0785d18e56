# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Talks to QEMU by its machine protocol (QMP): power, cables, and what QEMU announces."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from dataclasses import dataclass
from typing import Any

from psiphon_lab.namespace import PATIENCE, LabError


@dataclass(frozen=True)
class Announcement:
    """An event of QEMU's. time: when it announced it, seconds of Unix time."""

    name: str
    data: dict[str, Any]
    time: float


class Monitor:
    """A connection to QEMU. Thread-safe. connection: to the monitor's socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._stream = self._socket.makefile("rb")
        self._news = threading.Condition()
        self._events: list[Announcement] = []
        self._answers: list[dict[str, Any]] = []
        self._over = False
        self._one = threading.Lock()
        json.loads(self._stream.readline())
        self._reader = threading.Thread(target=self._read, name="monitor", daemon=True)
        self._reader.start()
        self.execute("qmp_capabilities")

    def _read(self) -> None:
        with contextlib.suppress(OSError, ValueError), self._stream:
            for line in self._stream:
                said = json.loads(line)
                with self._news:
                    if "event" in said:
                        at = said["timestamp"]
                        moment = at["seconds"] + at["microseconds"] / 1e6
                        self._events.append(Announcement(said["event"], said.get("data", {}), moment))
                    else:
                        self._answers.append(said)
                    self._news.notify_all()
        with self._news:
            self._over = True
            self._news.notify_all()

    def execute(self, command: str, *, seconds: float = PATIENCE, **arguments: Any) -> Any:
        """Run a command of QMP; returns what it returns. Underscores in names stand for hyphens. Raises LabError."""
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        with self._one:
            self._socket.sendall(json.dumps({"execute": command, "arguments": named}).encode() + b"\n")
            with self._news:
                if not self._news.wait_for(lambda: self._answers or self._over, timeout=seconds) or not self._answers:
                    raise LabError(f"QEMU did not answer {command}")
                answer = self._answers.pop(0)
        if "error" in answer:
            raise LabError(f"QEMU refused {command}: {answer['error'].get('desc')}")
        return answer["return"]

    def mark(self) -> int:
        """A point in the announcements, for `wait_for`."""
        return len(self._events)

    def wait_for(self, *names: str, since: int, seconds: float = PATIENCE, device: str | None = None) -> Announcement:
        """The first announcement of one of these names since a mark, of this device if it is given. Raises LabError."""

        def find() -> Announcement | None:
            named = (event for event in self._events[since:] if event.name in names)
            return next((event for event in named if device is None or event.data.get("device") == device), None)

        deadline = time.monotonic() + seconds
        with self._news:
            self._news.wait_for(lambda: find() is not None or self._over, timeout=max(0.0, deadline - time.monotonic()))
            found = find()
        if found is None:
            raise LabError(f"QEMU did not announce {' or '.join(names)} within {seconds:g} s")
        return found

    def close(self) -> None:
        """Close the connection."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._reader.join()  # it closes its stream, and a socket stays open as long as one of its streams is
        self._socket.close()
