# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Which program changed something, as far as the kernel reports it."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_FIRST_PID_NAMESPACE: Final = 0xEFFFFFFC
UNKNOWN: Final = "a program that the kernel does not name"


@dataclass(frozen=True)
class OwnPorts:
    """The port ids of the daemon's own netlink sockets: a change by these is not another program's.

    Attributes:
        routes: of the socket for links, routes, rules of routing, and filters.
        commits: of the socket that commits to the ruleset.
        queries: of the sockets that ask for a queue's counters: the kernel announces such a question like a change.
    """

    routes: int
    commits: int
    queries: int


def describe_committer(process: str, pid: int, port: int = 0, *, contained: bool | None = None) -> str:
    """The program that committed to the ruleset; the kernel itself names it (NFTA_GEN_PROC_NAME).

    Args:
        process: the program's name.
        pid: its process id in the first pid namespace.
        port: netlink's port id of its socket.
        contained: whether this process is in another pid namespace; None to find out.
    """
    name = _show(process) or "a program"
    if not (is_contained() if contained is None else contained):
        return f"{name} (pid {pid})"
    # In a container the port id is the process id, if a process with this name has it.
    return f"{name} (pid {port})" if process and _read_name(port) == process else f"{name} (pid {pid} on the host)"


def is_contained(path: Path = Path("/proc/self/ns/pid")) -> bool:
    """Whether this process is in another pid namespace than the first one (PROC_PID_INIT_INO, linux/proc_ns.h)."""
    try:
        return path.stat().st_ino != _FIRST_PID_NAMESPACE
    except OSError:
        return False


def _read_name(pid: int) -> str | None:
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _show(name: str) -> str:
    """A program's name, safe for a log and a terminal: a program can give itself any bytes (PR_SET_NAME)."""
    return "".join(letter if letter.isprintable() else "?" for letter in name)


def describe_port(port: int) -> str:
    """The program that requested a change of routes or rules, by netlink's port id.

    The kernel gives the first netlink socket of a process the process id as its port (netlink(7)), further ones another
    number. So a living process with that number counts as the program; any other number is reported as a port id.

    Args:
        port: the port id in the announcement, 0 if the kernel does not report it.
    """
    if not port:
        return UNKNOWN
    name = _read_name(port)
    if name is None:
        return f"a program (pid {port})" if _runs(port) else f"a program that is gone (netlink port id {port})"
    return f"{_show(name)} (pid {port})"


def _runs(pid: int) -> bool:
    """Whether there is such a process. Another user's process may be hidden (ProtectProc=), but exists."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True
