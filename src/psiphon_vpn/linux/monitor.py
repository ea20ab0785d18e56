"""Changes of links, addresses, routes and rules as the kernel tells them (rtnetlink(7)).

Raw, and only as much of each message as decides what to look at: a lost link must be seen within a millisecond, also in
a storm of messages. What exactly changed is read by a fresh look at everything.
"""

import socket
import struct
from dataclasses import dataclass

from psiphon_vpn.linux.netlink import iterate_messages

IFF_UP, IFF_LOWER_UP = 0x1, 0x10000
RTM_NEWLINK, RTM_DELLINK = 16, 17
KINDS = {16: "link", 17: "link", 20: "address", 21: "address", 24: "route", 25: "route", 32: "rule", 33: "rule"}
RTMGRP = 0x1 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 0x40000
"""LINK, IPV4_IFADDR, IPV4_ROUTE, IPV4_RULE, IPV6_IFADDR, IPV6_ROUTE, IPV6_RULE: group n of rtnetlink.h is the bit
n-1."""
BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class NetworkChange:
    """That something changed.

    Attributes:
        kind: "link", "address", "route" or "rule".
        index: interface that a change of a link or an address is about.
        lost: the link went down, lost its carrier or is gone.
    """

    kind: str
    index: int | None = None
    lost: bool = False


def parse_changes(data: bytes) -> tuple[NetworkChange, ...]:
    """The changes in what a netlink socket received. Never raises, whatever the bytes."""
    changes = []
    for message, body in iterate_messages(data):
        kind = KINDS.get(message)
        if kind == "link" and len(body) >= 16:
            # struct ifinfomsg: family, pad, type, index, flags, change.
            index, flags = struct.unpack_from("=iI", body, 4)
            lost = message == RTM_DELLINK or not (flags & IFF_UP and flags & IFF_LOWER_UP)
            changes.append(NetworkChange(kind, index, lost))
        elif kind == "address" and len(body) >= 8:
            # struct ifaddrmsg: family, prefixlen, flags, scope, index.
            changes.append(NetworkChange(kind, struct.unpack_from("=I", body, 4)[0]))
        elif kind in {"route", "rule"}:
            changes.append(NetworkChange(kind))
    return tuple(changes)


def open_network_monitor() -> socket.socket:
    """A non-blocking socket that receives a message for every change.

    An overrun (ENOBUFS) means that changes were missed: look at everything.
    """
    monitor = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
    )
    monitor.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
    monitor.bind((0, RTMGRP))
    return monitor
