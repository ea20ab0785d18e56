# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Changes of links, addresses, routes, rules and traffic control as the kernel announces them (rtnetlink(7)).

Raw, and only as much of each message as decides what to read again: a lost link must be noticed within a millisecond,
even in a flood of messages. A fresh reading shows what exactly changed.
"""

import socket
import struct
import sys
from dataclasses import dataclass

from psiphon_vpn.linux.netlink import iterate_announcements, read_attributes, widen
from psiphon_vpn.linux.rtvalues import decode_link, find_misfit
from psiphon_vpn.policy import names
from psiphon_vpn.policy.routing import RULE_PRIORITIES

IFF_UP, IFF_LOWER_UP = 0x1, 0x10000
RTM_NEWLINK, RTM_DELLINK, RTM_DELROUTE, RTM_DELRULE = 16, 17, 25, 33
_IFNAME, _NEW_NETNSID, _PRIORITY, _TABLE = 3, 45, 6, 15
"""IFLA_IFNAME; IFLA_NEW_NETNSID, from Linux 4.16 on; FRA_PRIORITY; RTA_TABLE."""
KINDS = {16: "link", 17: "link", 20: "address", 21: "address", 24: "route", 25: "route", 32: "rule", 33: "rule"}
KINDS |= dict.fromkeys((36, 37, 44, 45), "traffic")
RTMGRP = 0x1 | 0x8 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 0x40000
"""LINK, TC, IPV4_IFADDR, IPV4_ROUTE, IPV4_RULE, IPV6_IFADDR, IPV6_ROUTE, IPV6_RULE: group n of
rtnetlink.h is the bit n-1."""


@dataclass(frozen=True)
class NetworkChange:
    """Something changed.

    Attributes:
        kind: "link", "address", "route", "rule", or "traffic" for queueing disciplines and filters.
        index: of the interface, for a link, an address or traffic control.
        lost: the link went down, lost its carrier or is gone.
        down: the link was set down, or is gone.
        gone: the link is gone.
        name: of the link.
        moved: the link now belongs to another network namespace.
        misfit: as the TUN, a link like this would hold packets back (`rtvalues.find_misfit`).
        ours: a rule in our range of priorities, or a route of the private table.
        removed: the rule or route was removed.
        port: netlink's port id of the socket that changed a rule, route or filter. For the first socket of a process it
            is the process id (netlink(7)). 0: the kernel itself, or it does not say, as for links.
    """

    kind: str
    index: int | None = None
    lost: bool = False
    down: bool = False
    gone: bool = False
    name: str = ""
    moved: bool = False
    misfit: bool = False
    ours: bool = False
    removed: bool = False
    port: int = 0


def _number(attributes: dict[int, bytes], kind: int) -> int:
    return int.from_bytes(attributes.get(kind, b""), sys.byteorder)


def parse_changes(data: bytes) -> tuple[NetworkChange, ...]:
    """The changes in what a netlink socket received. Never raises, whatever the bytes."""
    changes = []
    for message, body, port in iterate_announcements(data):
        kind = KINDS.get(message)
        if kind == "link" and len(body) >= 16:
            # struct ifinfomsg: family, pad, type, index, flags, change.
            index, flags = struct.unpack_from("=iI", body, 4)
            gone = message == RTM_DELLINK
            down = gone or not flags & IFF_UP
            lost = down or not flags & IFF_LOWER_UP
            attributes = read_attributes(body[16:])
            name = attributes.get(_IFNAME, b"").split(b"\0")[0].decode("ascii", "replace")
            moved = gone and _NEW_NETNSID in attributes
            link = decode_link(message, body)
            misfit = link is not None and find_misfit(link) is not None
            changes.append(
                NetworkChange(kind, index, lost=lost, down=down, gone=gone, name=name, moved=moved, misfit=misfit)
            )
        elif kind == "address" and len(body) >= 8:
            # struct ifaddrmsg: family, prefixlen, flags, scope, index.
            changes.append(NetworkChange(kind, struct.unpack_from("=I", body, 4)[0]))
        elif kind == "traffic" and len(body) >= 8:
            # struct tcmsg: family, pads, index.
            changes.append(NetworkChange(kind, struct.unpack_from("=i", body, 4)[0], port=port))
        elif kind in {"route", "rule"}:
            # struct rtmsg, struct fib_rule_hdr: twelve bytes.
            attributes = read_attributes(body[12:])
            if kind == "route":
                ours = _number(attributes, _TABLE) == names.ROUTE_TABLE
            else:
                ours = _number(attributes, _PRIORITY) in RULE_PRIORITIES
            removed = message in {RTM_DELROUTE, RTM_DELRULE}
            changes.append(NetworkChange(kind, ours=ours, removed=removed, port=port))
    return tuple(changes)


def open_network_monitor() -> socket.socket:
    """A non-blocking socket that receives a message for every change.

    An overrun (ENOBUFS) means that changes were missed: look at everything.
    """
    monitor = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
    )
    widen(monitor)
    monitor.bind((0, RTMGRP))
    return monitor
