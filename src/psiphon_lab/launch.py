"""How programs are started on lab hosts: their environment, their identity, and what they must be able to read."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import psiphon_vpn

_SOURCE_ROOT = Path(psiphon_vpn.__path__[0]).resolve().parent
_CLEAN_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def clean_environment(**extra: str) -> dict[str, str]:
    """The environment of every lab process: a fixed PATH and locale, and the project on Python's path."""
    return {"PATH": _CLEAN_PATH, "LC_ALL": "C.UTF-8", "HOME": "/", "PYTHONPATH": str(_SOURCE_ROOT), **extra}


def python_paths() -> list[Path]:
    """What an ordinary user must be able to read for this very Python and this package to run."""
    return [Path(sys.base_prefix), Path(sys.prefix), _SOURCE_ROOT]


def setpriv_argv(
    *,
    uid: int | None,
    gid: int | None,
    groups: Sequence[int],
    ambient: Sequence[str],
    bounding: Sequence[str] | None,
    no_new_privs: bool,
) -> list[str]:
    """The setpriv(1) command that gives the next program its identity; empty if it stays root as it is."""
    argv: list[str] = []
    if uid is not None:
        argv.append(f"--reuid={uid}")
    if gid is not None or uid is not None:
        argv.append(f"--regid={uid if gid is None else gid}")
        argv.append(f"--groups={','.join(map(str, groups))}" if groups else "--clear-groups")
    if ambient:
        names = ",".join(f"+{name}" for name in ambient)
        argv += [f"--inh-caps={names}", f"--ambient-caps={names}"]
    if bounding is not None:
        argv.append(f"--bounding-set={','.join(['-all', *(f'+{name}' for name in bounding)])}")
    if no_new_privs:
        argv.append("--no-new-privs")
    return ["setpriv", *argv, "--"] if argv else []
