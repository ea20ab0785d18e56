# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A link between the laboratory and a process of its own in a virtual machine: each side may ask the other.

A message is a line: a pickled tuple in base64. Both ends run this checkout. Nothing else can reach the link.
"""

from __future__ import annotations

import base64
import itertools
import os
import pickle
import threading
from collections.abc import Callable, Mapping
from typing import Any

from psiphon_lab.namespace import LabError

Asked = Callable[..., Any]
_LARGEST_READ = 65536


class Link:
    """One end. Questions may come and go in any order, from any thread.

    Args:
        reading: a descriptor to read from.
        writing: one to write to; it may be the same.
        answers: what the other side may call, by name. Each question is answered in a thread of its own.
    """

    def __init__(self, reading: int, writing: int, answers: Mapping[str, Asked]) -> None:
        self._reading = reading
        self._writing = writing
        self._answers = dict(answers)
        self._numbers = itertools.count(1)
        self._news = threading.Condition()
        self._write_lock = threading.Lock()
        self._came: dict[int, tuple[Any, str]] = {}
        self._ended = False
        self._thread = threading.Thread(target=self._read, name="link", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def ask(self, name: str, *arguments: Any, seconds: float) -> Any:
        """Call something on the other side and wait. Raises LabError: it failed there, or the link ended."""
        number = next(self._numbers)
        self._send(("ask", number, name, arguments))
        with self._news:
            if not self._news.wait_for(lambda: self._ended or number in self._came, timeout=seconds):
                raise LabError(f"no answer within {seconds:g} s: {name}")
            if number not in self._came:
                raise LabError(f"the other side ended: {name}")
            value, error = self._came.pop(number)
        if error:
            raise LabError(error)
        return value

    def wait_for_end(self) -> None:
        """Wait until the other side has closed the link."""
        self._thread.join()

    def _send(self, message: tuple[Any, ...]) -> None:
        data = base64.b64encode(pickle.dumps(message)) + b"\n"
        with self._write_lock:
            try:
                while data:
                    data = data[os.write(self._writing, data) :]
            except OSError as error:
                raise LabError(f"the other side ended: {error}") from error

    def _read(self) -> None:
        unread = b""
        while True:
            try:
                data = os.read(self._reading, _LARGEST_READ)
            except OSError:
                break
            if not data:
                break
            *lines, unread = (unread + data).split(b"\n")
            for line in lines:
                self._take(pickle.loads(base64.b64decode(line)))  # noqa: S301 - from our own process
        with self._news:
            self._ended = True
            self._news.notify_all()

    def _take(self, message: tuple[Any, ...]) -> None:
        if message[0] == "ask":
            threading.Thread(target=self._answer, args=message[1:], name=f"link-{message[2]}", daemon=True).start()
            return
        _kind, number, value, error = message
        with self._news:
            self._came[number] = (value, error)
            self._news.notify_all()

    def _answer(self, number: int, name: str, arguments: tuple[Any, ...]) -> None:
        try:
            answer = ("answer", number, self._answers[name](*arguments), "")
        except Exception as error:  # noqa: BLE001 - raised again on the other side
            text = str(error) if isinstance(error, LabError) else f"{type(error).__name__}: {error}"
            answer = ("answer", number, None, text or "it failed")
        try:
            self._send(answer)
        except LabError:
            return
