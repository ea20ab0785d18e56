# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A user at a terminal: runs a program on a terminal of its own, waits for its questions and answers them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from psiphon_lab.launch import clean_environment
from psiphon_lab.namespace import Host, LabError

COLUMNS, ROWS = 80, 24
_CONTROL, _ERASE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]"), "\x1b[2K"
"""ECMA-48: control sequences, and the one that erases a line."""
SECONDS = 240.0
"""Time limit for what a user waits for."""


class Terminal:
    """A program on a host, on a terminal. A context manager; the program is killed at its end if it still runs.

    Attributes:
        moments: when each text that was waited for was found, in seconds of the monotonic clock.
        shown: everything that the terminal has shown, with the answers that it echoes; lines end with a newline only.
    """

    def __init__(self, host: Host, argv: Sequence[str | Path], *, columns: int = COLUMNS) -> None:
        self.shown = ""
        self.moments: list[float] = []
        self._searched = 0
        self._master, slave = pty.openpty()
        try:
            fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))
            # A session whose controlling terminal it is, as a login makes it.
            full = ["setsid", "--ctty", "--wait", *map(str, argv)]
            self._child = host.spawn(full, env=clean_environment(TERM="xterm"), stdin=slave, stdout=slave, stderr=slave)
        finally:
            os.close(slave)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The hangup that closing causes would not end a program that ignores it.
        self._child.kill()
        self._child.wait()
        os.close(self._master)

    def wait_for(self, text: str, *, seconds: float = SECONDS) -> None:
        """Wait until the terminal shows a text that was not found before. Raises LabError with all that it showed."""
        deadline = time.monotonic() + seconds
        while (position := self.shown.find(text, self._searched)) < 0:
            if not self._read(deadline - time.monotonic()):
                raise LabError(f"the terminal did not show {text!r} but:\n{self.shown}")
        self._searched = position + len(text)
        self.moments.append(time.monotonic())

    def answer(self, answers: Mapping[str, str], *, seconds: float = SECONDS) -> int:
        """Answer questions until the program ends; returns its exit code.

        Args:
            answers: by the end of a question, what the user types; each question once, in this order.
            seconds: time limit for each.
        """
        for question, line in answers.items():
            self.wait_for(question, seconds=seconds)
            os.write(self._master, f"{line}\n".encode())
        return self.wait(seconds=seconds)

    def find_lines(self) -> list[str]:
        """The lines as they appear, without colours and what a progress bar has overwritten."""
        return [_CONTROL.sub("", line.rpartition(_ERASE)[2]) for line in self.shown.splitlines()]

    def wait(self, *, seconds: float = SECONDS) -> int:
        """Wait for the program's end; returns its exit code."""
        deadline = time.monotonic() + seconds
        while self._read(deadline - time.monotonic()):
            pass
        try:
            return self._child.wait(timeout=max(deadline - time.monotonic(), 1.0))
        except subprocess.TimeoutExpired as error:
            raise LabError(f"the program did not end:\n{self.shown}") from error

    def _read(self, seconds: float) -> bool:
        """Take what the terminal shows next; False when nobody can write to it any more, or after `seconds`."""
        if seconds <= 0 or not select.select([self._master], [], [], seconds)[0]:
            return False
        with contextlib.suppress(OSError):  # EIO: all its ends are closed
            data = os.read(self._master, 65536)
            self.shown += data.decode(errors="replace").replace("\r\n", "\n")
            return bool(data)
        return False
