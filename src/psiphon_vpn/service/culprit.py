"""Who changed something, as far as the kernel tells."""

import os
from pathlib import Path
from typing import Final

UNKNOWN: Final = "a program that the kernel does not name"


def describe_committer(process: str, pid: int) -> str:
    """Who committed to the ruleset; the kernel itself names the program (NFTA_GEN_PROC_NAME)."""
    return f"{_show(process) or 'a program'} (pid {pid})"


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
    try:
        name = Path(f"/proc/{port}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
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
