# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Receives the kernel's announcements on a host of the laboratory, in a thread, while a block runs."""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from psiphon_lab.namespace import Host

_POLL_SECONDS = 0.2


class Announcements:
    """A context manager that calls `receive` for each message, in its own thread.

    Args:
        host: the host whose kernel state is watched.
        openers: each makes a netlink socket that receives announcements.
    """

    def __init__(self, host: Host, *openers: Callable[[], socket.socket]) -> None:
        # A socket stays in the namespace in which it was made.
        self._sockets = [host.call(opener) for opener in openers]
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._read, name="announcements")

    def receive(self, number: int, now: float, data: bytes) -> None:
        """Handle a message.

        Args:
            number: which of the sockets received it, in the order of `openers`.
            now: time.monotonic(), seconds; the same for all messages that arrived together.
            data: the message.
        """
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        for announced in self._sockets:
            announced.close()

    def _read(self) -> None:
        with selectors.DefaultSelector() as selector:
            for number, announced in enumerate(self._sockets):
                selector.register(announced, selectors.EVENT_READ, number)
            while not self._ended.is_set():
                ready = selector.select(_POLL_SECONDS)
                now = time.monotonic()
                for key, _ in ready:
                    self.receive(key.data, now, self._sockets[key.data].recv(65536))
