# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Processor time of a process and of its children that have ended."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_CHILDREN = slice(13, 15)
"""cutime and cstime in /proc/PID/stat, counted after the program's name (proc(5))."""


def read_processor_time(pid: int) -> float:
    """Seconds that the threads of a process have spent on a processor so far."""
    spent = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # a thread that has just ended
            # First field: nanoseconds on a processor (sched-stats.rst of the kernel documentation).
            spent += int((task / "schedstat").read_text(encoding="ascii").split()[0])
    return spent / 1e9


def read_children_time(pid: int) -> float:
    """Seconds of children that have ended. Counted by the kernel in hundredths."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return sum(int(value) for value in fields[_CHILDREN]) / os.sysconf("SC_CLK_TCK")


def read_total_time(pid: int) -> float:
    """Both."""
    return read_processor_time(pid) + read_children_time(pid)


def read_resident(pid: int) -> int:
    """Resident memory, KiB (VmRSS of proc(5)). Raises ValueError if the kernel says none."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise ValueError("no VmRSS")
