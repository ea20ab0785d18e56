# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's own entries in the table `local` for the uplink's IPv4 addresses, restored after somebody flushed them.

Without them packets for this machine are not delivered, so the core gets no answer. The kernel makes an entry only when
an address is set (fib_frontend.c, fib_add_ifaddr), and a network manager that sees its address in place does not set it
again. For IPv6 our entry would stand beside the kernel's.
"""

import logging

from psiphon_vpn.linux.rtbatch import RTN_LOCAL, encode_local
from psiphon_vpn.linux.rtlist import find_link, list_addresses, list_local
from psiphon_vpn.linux.rtnetlink import RouteSocket
from psiphon_vpn.linux.rtvalues import IFF_UP
from psiphon_vpn.policy.routing import IPV4

log = logging.getLogger(__name__)


async def put_entries_back(changes: RouteSocket, uplink: str) -> None:
    """Add the missing entries. If the kernel refuses one, it stays missing, and the status says that no server answers.

    Args:
        changes: by which they are made.
        uplink: name of the interface.

    Raises:
        OSError: the kernel does not answer.
    """
    link = find_link(uplink)
    if link is None or not link.flags & IFF_UP or link.master:
        return  # a port has no address, or its entries are in the table of its VRF
    missing = [
        address.text
        for address in await list_addresses(link.index)
        if address.version == IPV4 and not await _has_entry(address.text)
    ]
    if missing:
        refused = changes.add(encode_local(f"{text}/32", link.index, text) for text in missing)
        log.warning("the table 'local' had lost an address of %s; %s", uplink, refused[0] if refused else "put back")


async def _has_entry(address: str) -> bool:
    return any(route.type == RTN_LOCAL for route in await list_local(address))
