# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Waits for what a lab process says or does, always with a limit.

A limit matters only for an event that never comes. It costs nothing otherwise, however slow the machine is. So it is
generous, and says nothing about how long something may take.
"""

from __future__ import annotations

import select
import subprocess
import time
from collections.abc import Callable

from psiphon_lab.namespace import PATIENCE, LabError


def wait_ready(child: subprocess.Popen[bytes], what: str, *, timeout: float = PATIENCE) -> None:
    """Wait for the line "ready" on a child's standard output. Raises LabError if it does not come."""
    pipe = child.stdout
    assert pipe is not None
    readable, _, _ = select.select([pipe], [], [], timeout)
    line = pipe.readline() if readable else b""
    if line != b"ready\n":
        raise LabError(f"{what} did not start: rc {child.poll()}")
    pipe.close()


def wait_until(condition: Callable[[], bool], what: str, *, timeout: float = PATIENCE, pause: float = 0.01) -> float:
    """Poll a condition; returns how long it took, in seconds. Raises LabError after `timeout` seconds."""
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > timeout:
            raise LabError(f"not within {timeout} s: {what}")
        time.sleep(pause)
    return time.monotonic() - start
