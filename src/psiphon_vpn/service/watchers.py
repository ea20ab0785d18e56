# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The event sources: commits to the ruleset, and changes of links, addresses, routes and rules."""

import logging
import socket
from collections.abc import Callable
from typing import TypeVar

from psiphon_vpn.linux.commits import Commits
from psiphon_vpn.linux.monitor import NetworkChange, parse_changes
from psiphon_vpn.linux.nfnetlink import Generation
from psiphon_vpn.service.parts import Part
from psiphon_vpn.tasks import Supervisor, call_later, call_when_readable

log = logging.getLogger(__name__)

T = TypeVar("T")

_READS_AT_ONCE = 32
_LARGEST = 1 << 16


def _watch(
    monitor: socket.socket,
    parse: Callable[[bytes], tuple[T, ...]],
    on_event: Callable[[T | None], None],
    what: str,
    tasks: Supervisor,
) -> None:
    def receive() -> None:
        # Bounded: the loop calls again while there is more.
        for _ in range(_READS_AT_ONCE):
            try:
                data = monitor.recv(_LARGEST)
            except BlockingIOError:
                return
            except OSError as error:
                # ENOBUFS: the kernel dropped messages; the socket goes on.
                log.warning("%s were missed: %s", what, error)
                on_event(None)
                return
            try:
                for event in parse(data):
                    on_event(event)
            except Exception:
                on_event(None)  # the rest was missed
                raise

    call_when_readable(monitor.fileno(), tasks.guard(Part.ANNOUNCEMENTS, receive))


def watch_commits(commits: Commits, on_commit: Callable[[Generation | None], None], tasks: Supervisor) -> None:
    """Call for every commit that may have changed a rule; with None if some were missed: read everything again."""

    def receive() -> None:
        taken = commits.take()
        if None in taken:
            log.warning("commits to the ruleset were missed")
        try:
            for generation in taken:
                on_commit(generation)
        except Exception:
            on_commit(None)  # the rest was missed
            raise

    guarded = tasks.guard(Part.ANNOUNCEMENTS, receive)

    def receive_soon() -> None:
        call_later(0, guarded)

    commits.call_when_untold(receive_soon)
    call_when_readable(commits.fileno(), guarded)


def watch_network(monitor: socket.socket, on_change: Callable[[NetworkChange | None], None], tasks: Supervisor) -> None:
    """Call for every change of the network; with None if some were missed: read everything again."""
    _watch(monitor, parse_changes, on_change, "changes of the network", tasks)
