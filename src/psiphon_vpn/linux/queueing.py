# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The queue in front of a device: how many packets were sent into it, and what other programs put there.

The counters of a TUN count what the program behind it has read. They miss packets that wait for a program that hangs,
but the queueing discipline has counted these (rtnetlink(7), RTM_GETQDISC).
"""

import contextlib
import os
import socket
import struct

from psiphon_vpn.linux.netlink import HEADER, iterate_messages, read_attributes
from psiphon_vpn.linux.rtnetlink import RouteSocket, list_all
from psiphon_vpn.linux.tcvalues import (
    CLSACT_PARENT,
    RTM_DELQDISC,
    RTM_GETQDISC,
    RTM_NEWQDISC,
    TCMSG,
    Discipline,
    decode_discipline,
)

NLM_F_REQUEST, NLM_F_ECHO = 0x1, 0x8
TC_H_ROOT = 0xFFFFFFFF
TCA_STATS2, TCA_STATS_BASIC, TCA_STATS_QUEUE = 7, 1, 3
_BASIC = struct.Struct("=QI")
"""struct gnet_stats_basic: bytes, packets."""
_QUEUE = struct.Struct("=III")
"""The beginning of struct gnet_stats_queue: packets that wait, their bytes, packets dropped."""


def parse_queued(data: bytes) -> int:
    """The number in the kernel's answer; 0 if it has none. Never raises, whatever the bytes."""
    for kind, body in iterate_messages(data):
        if kind != RTM_NEWQDISC:
            continue
        stats = read_attributes(read_attributes(body[TCMSG.size :]).get(TCA_STATS2, b""))
        basic, queue = stats.get(TCA_STATS_BASIC, b""), stats.get(TCA_STATS_QUEUE, b"")
        if len(basic) < _BASIC.size or len(queue) < _QUEUE.size:
            continue
        _bytes, passed = _BASIC.unpack_from(basic)
        waiting, _backlog, dropped = _QUEUE.unpack_from(queue)
        return int(passed + waiting + dropped)
    return 0


def find_own_port() -> int:
    """Netlink's port id of this process's queries: the kernel announces such a query to everybody, like a change.

    In the form of libnl, with another number in the upper bits.
    """
    return (0x2A5 << 22) | (os.getpid() & 0x3FFFFF)


def read_queued(device: str) -> int:
    """Packets that were sent into a device since it is up, including those that wait for its reader.

    Args:
        device: name of the interface.

    Returns:
        0 if there is no such device, or its queue does not count ("noqueue").
    """
    try:
        body = TCMSG.pack(0, socket.if_nametoindex(device), 0, TC_H_ROOT, 0)
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as asking:
            with contextlib.suppress(OSError):  # taken: then the query looks like another program's change
                asking.bind((find_own_port(), 0))
            asking.send(HEADER.pack(HEADER.size + len(body), RTM_GETQDISC, NLM_F_REQUEST | NLM_F_ECHO, 1, 0) + body)
            # NLM_F_ECHO sends the announcement to this socket too, before send() returns.
            return parse_queued(asking.recv(1 << 14, socket.MSG_DONTWAIT))
    except OSError:
        return 0


async def find_foreign(index: int) -> list[Discipline]:
    """What other programs put in front of a device. The kernel's own queueing discipline has no handle.

    Raises:
        OSError: the kernel does not answer.
    """
    found = await list_all(RTM_GETQDISC, TCMSG.pack(0, 0, 0, 0, 0), decode_discipline)
    return [one for one in found if one.index == index and one.handle and one.parent in {TC_H_ROOT, CLSACT_PARENT}]


async def remove_foreign(changing: RouteSocket, index: int) -> list[str]:
    """Remove what other programs put in front of a device, with everything below it; the kernel adds its own again.

    Returns:
        The kinds of what was removed.

    Raises:
        OSError: the kernel does not answer.
    """
    found = await find_foreign(index)
    requests = [(RTM_DELQDISC, 0, TCMSG.pack(0, index, one.handle, one.parent, 0)) for one in found]
    refused = changing.change_all(requests)
    return [one.kind for one, number in zip(found, refused, strict=True) if not number]
