# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Who may use the wire on this machine, by number."""

import os

from psiphon_vpn import network_managers
from psiphon_vpn.accounts import find_user
from psiphon_vpn.policy.model import Identity


def find_network_managers() -> tuple[int, ...]:
    """Uids of the users that speak DHCP, as far as they exist here."""
    found = {user.uid for name in network_managers.USERS if (user := find_user(name)) is not None}
    return tuple(sorted({0, *found}))


def find_identity() -> Identity:
    """The daemon's own: it runs as the one user that may use the wire."""
    return Identity(uid=os.geteuid(), gid=os.getegid(), network_manager_uids=find_network_managers())
