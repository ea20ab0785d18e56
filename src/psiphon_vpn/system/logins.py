# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs that log in to a network (802.1X on a cable, or wireless), and whether the guards accept their frames."""

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
    """Access to the processes. Anything unreadable raises OSError."""

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
    """A program that logs in without being root, so that the guards refuse its frames.

    Attributes:
        name: the program's.
        pid: its process.
        uid: its user.
        wired: whether its arguments say that it is for a cable. One that a network manager controls may be for either.
    """

    name: str
    pid: int
    uid: int
    wired: bool


def find_refused_logins(reads: Reads | None = None) -> tuple[Login, ...]:
    """Programs in this network namespace whose EAPOL frames the egress guard refuses. Never raises.

    A wireless card's own protocol stack sends them past the guards (docs/architecture.md, EAPOL): such a login works
    with any user. One on a cable does not.
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
    except (OSError, KeyError, IndexError, ValueError):  # the process has ended meanwhile
        return None
    return Login(name=name, pid=pid, uid=uid, wired=name in _WIRED_PROGRAMS or _names_wired_driver(words))


def _names_wired_driver(words: list[str]) -> bool:
    """Whether wpa_supplicant(8) uses the driver for cables, alone or among others: -D nl80211,wired."""
    drivers = [after for word, after in zip(words, [*words[1:], ""], strict=True) if word == "-D"]
    drivers += [word[2:] for word in words if word.startswith("-D") and len(word) > 2]
    return any(_WIRED_DRIVER in driver.split(",") for driver in drivers)
