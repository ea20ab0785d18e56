# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The name of loopback here. It is recognised by its index, since root may rename it, or call a card `lo`."""

import socket

from psiphon_vpn.policy import names
from psiphon_vpn.policy.values import InterfaceName


def name_loopback() -> str:
    """The name of loopback in this network namespace, whatever its form."""
    return socket.if_indextoname(names.LOOPBACK_INDEX)


def find_plain_name() -> InterfaceName | None:
    """A name that can stand in a rule: loopback's, or else any interface's; None if there is none."""
    found = (name_loopback(), *(name for _, name in socket.if_nameindex()))
    return next((plain for name in found if (plain := InterfaceName.of(name)) is not None), None)
