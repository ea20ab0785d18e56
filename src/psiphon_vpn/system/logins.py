"""Programs that log in to a network (802.1X on a cable, or wireless), and whether the guards let their frames by."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from psiphon_vpn.network_managers import MANAGERS
from psiphon_vpn.policy.render_rules import ROOT_UIDS

PROC: Final = Path("/proc")
PROGRAMS: Final = tuple(name for manager in MANAGERS for name in manager.logins)
"""Names of processes (proc(5), comm)."""
_WIRED_PROGRAMS: Final = tuple(name for manager in MANAGERS for name in manager.cable_logins)
_WIRED_DRIVER: Final = "wired"


class Reads(Protocol):
    """How the processes are looked at. What cannot be read raises OSError."""

    def read(self, path: Path) -> bytes:
        """A file, whole."""

    def read_link(self, path: Path) -> str:
        """Where a link leads: readlink(2)."""

    def list_directory(self, path: Path) -> tuple[str, ...]:
        """Names in a directory."""


class RealReads:
    """The machine's own files."""

    def read(self, path: Path) -> bytes:
        """A file, whole."""
        return path.read_bytes()

    def read_link(self, path: Path) -> str:
        """Where a link leads."""
        return os.readlink(path)

    def list_directory(self, path: Path) -> tuple[str, ...]:
        """Names in a directory."""
        return tuple(os.listdir(path))


@dataclass(frozen=True, kw_only=True)
class Login:
    """A program that logs in, and whose frames the guards refuse, since it does not run as root.

    Attributes:
        name: the program's.
        pid: its process.
        uid: whom it runs as.
        wired: whether it says itself that it is for a cable. One that a network manager talks to may be for either.
    """

    name: str
    pid: int
    uid: int
    wired: bool


def find_refused_logins(reads: Reads | None = None) -> tuple[Login, ...]:
    """Programs on this network whose EAPOL frames the egress guard refuses. Never raises.

    A wireless card's own protocol stack sends them where no guard looks (docs/architecture.md, EAPOL): such a login
    works whoever runs the program. One on a cable does not.
    """
    reads = reads or RealReads()
    try:
        here = reads.read_link(PROC / "self/ns/net")
        processes = sorted(int(name) for name in reads.list_directory(PROC) if name.isdigit())
    except OSError:
        return ()
    found = (_look(reads, pid, here) for pid in processes)
    return tuple(login for login in found if login is not None)


def _look(reads: Reads, pid: int, here: str) -> Login | None:
    place = PROC / str(pid)
    try:
        lines = reads.read(place / "status").decode("utf-8", "replace").splitlines()
        status = {key: value.split() for key, _colon, value in (line.partition(":") for line in lines)}
        name = " ".join(status.get("Name", ()))
        # Real, effective, saved and file system id (proc(5)): rules match the last.
        uid = int(status["Uid"][3])
        if name not in PROGRAMS or uid in ROOT_UIDS or reads.read_link(place / "ns/net") != here:
            return None
        words = reads.read(place / "cmdline").decode("utf-8", "replace").split("\0")
    except (OSError, KeyError, IndexError, ValueError):  # it has ended meanwhile
        return None
    return Login(name=name, pid=pid, uid=uid, wired=name in _WIRED_PROGRAMS or _names_wired_driver(words))


def _names_wired_driver(words: list[str]) -> bool:
    """Whether wpa_supplicant(8) was told to use the driver for cables, alone or among others: -D nl80211,wired."""
    drivers = [after for word, after in zip(words, [*words[1:], ""], strict=True) if word == "-D"]
    drivers += [word[2:] for word in words if word.startswith("-D") and len(word) > 2]
    return any(_WIRED_DRIVER in driver.split(",") for driver in drivers)
