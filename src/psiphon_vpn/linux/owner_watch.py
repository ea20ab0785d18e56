# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Notices the end of the process that owns a table.

The kernel announces no removal of a table whose owner ends (nft_rcv_nl_event in nf_tables_api.c sends nothing). It does
report the end of a process to the holder of its descriptor (pidfd_open(2)), after the process has lost its sockets
and the table with them (do_exit in exit.c: exit_task_work comes before exit_notify).
"""

import os
from collections.abc import Callable

from psiphon_vpn.tasks import call_when_readable, forget_readable


class OwnerWatch:
    """Follows one owner at a time.

    Args:
        on_end: called once when the followed process ends. A guarded function (`Supervisor.guard`).
    """

    def __init__(self, on_end: Callable[[], None]) -> None:
        self._on_end = on_end
        self._followed: int | None = None
        self._descriptor = -1

    def follow(self, port: int | None) -> None:
        """Follow another owner, or none.

        Args:
            port: the owner's netlink port id (NFTA_TABLE_OWNER). It is the process id for the first netlink socket of a
                process (netlink_autobind). If it is none, the end is not reported, so callers also check now and then.
        """
        if port == self._followed:
            return
        self.close()
        self._followed = port
        if port is None:
            return
        try:
            self._descriptor = os.pidfd_open(port)
        except (OSError, OverflowError):
            return
        call_when_readable(self._descriptor, self._end)

    def close(self) -> None:
        """Stop following."""
        self._followed = None
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            forget_readable(descriptor)
            os.close(descriptor)

    def _end(self) -> None:
        self.close()
        self._on_end()
