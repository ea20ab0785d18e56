# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel lists of the core's sockets (sock_diag(7)): their source addresses, and when they heard something.

Reading it needs no capability. A kernel without it (CONFIG_INET_DIAG, CONFIG_INET_UDP_DIAG) refuses, and then it is
unknown what is in use.
"""

import ipaddress
import socket
import struct
from collections.abc import Iterator

from psiphon_vpn.linux.netlink import HEADER, iterate_messages, read_attributes
from psiphon_vpn.network.choice import SocketUse
from psiphon_vpn.policy.routing import IPV4, IPV6

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_DUMP = 0x1, 0x300
TCP_ESTABLISHED = 1 << 1
TCP_STATES = TCP_ESTABLISHED | 1 << 2
"""ESTABLISHED and SYN_SENT (tcp_states.h)."""
ALL_STATES = 0xFFFFFFFF
INET_DIAG_INFO = 2
_MESSAGE = struct.Struct("=BBBB2s2s16s16sI8xIIIII")
"""struct inet_diag_msg: family, state, timer, retrans; ports and addresses, interface, cookie; expires, rqueue, wqueue,
uid, inode."""
_LAST_RECEIVED = struct.Struct("=52xII")
"""The end of what is read of struct tcp_info (linux/tcp.h): milliseconds since data came, and since an
acknowledgement came."""
_ANSWER_SECONDS = 1.0
_LARGEST = 1 << 16


def read_core_uses(uid: int, index: int) -> frozenset[SocketUse] | None:
    """What the sockets of a user use of the interface that they are bound to.

    Args:
        uid: of the user.
        index: of the interface.

    Returns:
        None if the kernel does not list them. Blocks for as long as the kernel takes to list the sockets.
    """
    found: set[SocketUse] = set()
    try:
        for protocol, states in ((socket.IPPROTO_TCP, TCP_STATES), (socket.IPPROTO_UDP, ALL_STATES)):
            for family in (socket.AF_INET, socket.AF_INET6):
                for message in _list_sockets(family, protocol, states):
                    found |= parse_socket(message, uid=uid, index=index)
    except OSError:
        return None
    return frozenset(found)


def read_last_heard(uid: int, index: int) -> float | None:
    """Seconds since the kernel last received something of the far end of a user's connections by TCP.

    Args:
        uid: of the user.
        index: of the interface that the connections are bound to.

    Returns:
        None if there is no such connection, or the kernel does not list them. Blocks as `read_core_uses` does.
    """
    found: list[float] = []
    try:
        for family in (socket.AF_INET, socket.AF_INET6):
            for message in _list_sockets(family, socket.IPPROTO_TCP, TCP_ESTABLISHED, INET_DIAG_INFO):
                heard = parse_last_heard(message, uid=uid, index=index)
                found += [] if heard is None else [heard]
    except OSError:
        return None
    return min(found, default=None)


def _list_sockets(family: int, protocol: int, states: int, extension: int = 0) -> Iterator[bytes]:
    # struct inet_diag_req_v2: family, protocol, extensions, states, and an empty inet_diag_sockid.
    extensions = 1 << (extension - 1) if extension else 0
    body = struct.pack("=BBBxI48x", family, protocol, extensions, states)
    # A socket for each: a dump that is not read to its end blocks the next on the same socket.
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG) as diag:
        diag.settimeout(_ANSWER_SECONDS)
        diag.send(HEADER.pack(HEADER.size + len(body), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, 1, 0) + body)
        while True:
            data = diag.recv(_LARGEST)
            if not data:
                raise OSError("the kernel's list of sockets has no end")
            for kind, message in iterate_messages(data):
                if kind == NLMSG_DONE:
                    return
                if kind == NLMSG_ERROR:
                    raise OSError(-struct.unpack_from("=i", message)[0], "sock_diag")
                if kind == SOCK_DIAG_BY_FAMILY and len(message) >= _MESSAGE.size:
                    yield message


def parse_last_heard(message: bytes, *, uid: int, index: int) -> float | None:
    """Seconds since one socket received data or an acknowledgement; None if it is another's, or that is not told."""
    *_, bound, _, _, _, owner, _ = _MESSAGE.unpack_from(message)
    info = read_attributes(message[_MESSAGE.size :]).get(INET_DIAG_INFO, b"")
    if (owner, bound) != (uid, index) or len(info) < _LAST_RECEIVED.size:
        return None
    data_ago, acknowledged_ago = _LAST_RECEIVED.unpack_from(info)
    return float(min(data_ago, acknowledged_ago)) / 1000


def parse_socket(message: bytes, *, uid: int, index: int) -> frozenset[SocketUse]:
    """What one socket uses (struct inet_diag_msg); nothing if it is another user's, or bound elsewhere."""
    family, _, _, _, _, _, source, _, bound, _, _, _, owner, _ = _MESSAGE.unpack_from(message)
    if (owner, bound) != (uid, index):
        return frozenset()
    if family == socket.AF_INET:
        address = ipaddress.IPv4Address(source[:4])
        return frozenset({SocketUse(IPV4, None if address.is_unspecified else str(address))})
    address6 = ipaddress.IPv6Address(source)
    if address6.is_unspecified:
        # It does not matter whether it is for IPv6 only.
        return frozenset({SocketUse(IPV4, None), SocketUse(IPV6, None)})
    if address6.ipv4_mapped is not None:
        return frozenset({SocketUse(IPV4, str(address6.ipv4_mapped))})
    return frozenset({SocketUse(IPV6, str(ipaddress.IPv6Network((address6, 64), strict=False)))})
