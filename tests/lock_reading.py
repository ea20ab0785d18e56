# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads the state of the lock on a host of the laboratory, however busy the computer is."""

from __future__ import annotations

from psiphon_lab.namespace import Host
from psiphon_lab.waiting import wait_until
from psiphon_vpn.linux.lockstate import LockState, read_lock_state


def read_lock(host: Host) -> LockState:
    """The state of the lock on this host; reads again while nft(8) is too slow to answer.

    Raises LabError if it cannot be read within the tests' time limit.
    """
    read: list[LockState] = []

    def can_be_read() -> bool:
        read.append(host.call(read_lock_state))
        return read[-1].locked is not None

    wait_until(can_be_read, "a state of the lock that can be read")
    return read[-1]
