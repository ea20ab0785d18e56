"""When the client's ruleset and links changed: the kernel's own announcements, with the time they came."""

from __future__ import annotations

import socket

from psiphon_lab.announcements import Announcements
from psiphon_lab.namespace import Host
from psiphon_vpn.linux.monitor import parse_changes
from psiphon_vpn.linux.netlink import iterate_messages
from psiphon_vpn.linux.nfnetlink import Generation, open_generation_monitor, parse_generations

RTMGRP_LINK = 1
_NEWTABLE, _DELTABLE, _NEWSETELEM, _DELSETELEM, _NEWGEN = 0xA00, 0xA02, 0xA0C, 0xA0E, 0xA0F


def _open_link_monitor() -> socket.socket:
    monitor = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    monitor.bind((0, RTMGRP_LINK))
    return monitor


class CommitWatch(Announcements):
    """Collects announcements while the block runs. Times are of time.monotonic(), seconds."""

    def __init__(self, host: Host) -> None:
        super().__init__(host, open_generation_monitor, _open_link_monitor)
        self._commits: list[tuple[float, Generation]] = []
        self._made: list[frozenset[int]] = []
        """What each commit was made of, as nfnetlink's types of messages."""
        self._pending: set[int] = set()
        self._lost: list[float] = []

    def hear(self, number: int, now: float, data: bytes) -> None:
        """Take a message: the first socket tells of rules, the other of links."""
        if number == 0:
            self._note(now, data)
        elif any(change.lost for change in parse_changes(data)):
            self._lost.append(now)

    def _note(self, now: float, data: bytes) -> None:
        for kind, _ in iterate_messages(data):
            if kind == _NEWGEN:
                self._made.append(frozenset(self._pending))
                self._pending.clear()
            else:
                self._pending.add(kind)
        self._commits += [(now, item) for item in parse_generations(data) if item.number]

    def first_loss(self) -> float | None:
        """Time of the first lost carrier."""
        return next(iter(list(self._lost)), None)

    def first_by(self, process: str) -> float | None:
        """Time of the first commit of a program of this name."""
        return next((when for when, commit in list(self._commits) if commit.process == process), None)

    def first_after(self, begin: float, *, pid: int) -> float | None:
        """Time of the first commit of a process after a moment."""
        return next((when for when, commit in list(self._commits) if when >= begin and commit.pid == pid), None)

    def opened_after(self, begin: float, *, pid: int) -> float | None:
        """Time at which a daemon took the lease: it put elements into a set, behind a load of tables after a moment."""
        loaded = False
        for (when, commit), made in zip(list(self._commits), list(self._made), strict=False):
            if when >= begin and _NEWTABLE in made:
                loaded = True
            elif loaded and commit.pid == pid and _NEWSETELEM in made:
                return when
        return None

    def closed_after(self, begin: float, *, pid: int) -> float | None:
        """Time at which a process itself took elements away or loaded tables: no renewal, and no lease that ran out."""
        for (when, commit), made in zip(list(self._commits), list(self._made), strict=False):
            if when >= begin and commit.pid == pid and made & {_NEWTABLE, _DELTABLE, _DELSETELEM}:
                return when
        return None

    def count_by(self, pid: int) -> int:
        """Commits of a process so far."""
        return sum(commit.pid == pid for _, commit in list(self._commits))

    def next_after(self, begin: float) -> float | None:
        """Time of the first commit after a moment, by anyone."""
        return next((when for when, _ in list(self._commits) if when > begin), None)
