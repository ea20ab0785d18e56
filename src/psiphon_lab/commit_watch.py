# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Records the kernel's announcements of changed rules and links on the client, each with its time."""

from __future__ import annotations

import socket

from psiphon_lab.announcements import Announcements
from psiphon_lab.namespace import Host
from psiphon_lab.service_adapter.kernel_events import (
    Generation,
    iterate_messages,
    open_generation_monitor,
    parse_changes,
    parse_generations,
)

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
        """The nfnetlink message types of each commit."""
        self._pending: set[int] = set()
        self._lost: list[float] = []

    def receive(self, number: int, now: float, data: bytes) -> None:
        """Handle a message: rules on the first socket, links on the other."""
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
        """When the first carrier was lost."""
        return next(iter(list(self._lost)), None)

    def first_by(self, process: str) -> float | None:
        """When a program with this name made its first commit."""
        return next((when for when, commit in list(self._commits) if commit.process == process), None)

    def first_after(self, begin: float, *, pid: int) -> float | None:
        """When a process made its first commit after a moment."""
        return next((when for when, commit in list(self._commits) if when >= begin and commit.pid == pid), None)

    def opened_after(self, begin: float, *, pid: int) -> float | None:
        """When a daemon set the lease after a moment: it loaded tables, and then added elements to a set."""
        loaded = False
        for (when, commit), made in zip(list(self._commits), list(self._made), strict=False):
            if when >= begin and _NEWTABLE in made:
                loaded = True
            elif loaded and commit.pid == pid and _NEWSETELEM in made:
                return when
        return None

    def closed_after(self, begin: float, *, pid: int) -> float | None:
        """When a process removed elements or loaded tables after a moment. Renewals and expiries do not count."""
        for (when, commit), made in zip(list(self._commits), list(self._made), strict=False):
            if when >= begin and commit.pid == pid and made & {_NEWTABLE, _DELTABLE, _DELSETELEM}:
                return when
        return None

    def count_by(self, pid: int) -> int:
        """The number of commits of a process so far."""
        return sum(commit.pid == pid for _, commit in list(self._commits))

    def next_after(self, begin: float) -> float | None:
        """When any process made the first commit after a moment."""
        return next((when for when, _ in list(self._commits) if when > begin), None)
