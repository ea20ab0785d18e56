"""Who changed something, as far as the kernel tells."""

import os
from pathlib import Path
from typing import Final

_FIRST_PID_NAMESPACE: Final = 0xEFFFFFFC
UNKNOWN: Final = "a program that the kernel does not name"


def describe_committer(process: str, pid: int, port: int = 0, *, contained: bool | None = None) -> str:
    """Who committed to the ruleset; the kernel itself names the program (NFTA_GEN_PROC_NAME).

    Args:
        process: what it calls itself.
        pid: its process id as the first of all pid namespaces counts.
        port: netlink's port id of its socket.
        contained: whether we count otherwise; None to find out.
    """
    name = _show(process) or "a program"
    if not (is_contained() if contained is None else contained):
        return f"{name} (pid {pid})"
    # A living process of ours that is called so has the port id for its process id.
    return f"{name} (pid {port})" if process and _read_name(port) == process else f"{name} (pid {pid} on the host)"


def is_contained(path: Path = Path("/proc/self/ns/pid")) -> bool:
    """Whether we are in another pid namespace than the machine's first (PROC_PID_INIT_INO, linux/proc_ns.h)."""
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
    """A program's name as it may stand in a journal and on a terminal: it gives itself any bytes (PR_SET_NAME)."""
    return "".join(letter if letter.isprintable() else "?" for letter in name)


def describe_port(port: int) -> str:
    """Who asked for a change of routes or rules, by netlink's port id.

    The kernel gives the first netlink socket of a process the process id as its port (netlink(7)), further ones another
    number. So a living process of that number is taken for it, and anything else is called what it is.

    Args:
        port: the port id in the announcement, 0 where the kernel does not say.
    """
    if not port:
        return UNKNOWN
    name = _read_name(port)
    if name is None:
        return f"a program (pid {port})" if _runs(port) else f"a program that is gone (netlink port id {port})"
    return f"{_show(name)} (pid {port})"


def _runs(pid: int) -> bool:
    """Whether there is such a process: one of another user may be hidden from us (ProtectProc=), but is there."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True
