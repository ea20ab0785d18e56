"""Routing rules, routes and the TUN put back in one breath: one write to a netlink socket, without a look before it.

What is there already stays as it is (NLM_F_EXCL), so it may be sent at any time. Whether everything is as it should be
is another question, asked afterwards by `routes.check_routing` and `tun.check_tun`.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterable

from psiphon_vpn.linux.netlink import HEADER, write_attribute
from psiphon_vpn.policy import names
from psiphon_vpn.policy.routing import IPV4, MARK_MASK, Route, RoutingRule

RTM_NEWLINK, RTM_NEWADDR, RTM_NEWROUTE, RTM_NEWRULE = 16, 20, 24, 32
NLM_F_REQUEST, NLM_F_ACK, NLM_F_EXCL, NLM_F_CREATE = 0x1, 0x4, 0x200, 0x400
NLMSG_ERROR = 2
IFF_UP = 1
IFA_F_NODAD, IFA_F_NOPREFIXROUTE = 0x02, 0x200
RTN_UNICAST, RTN_UNREACHABLE = 1, 7
RT_TABLE_UNSPEC, RTPROT_STATIC, RT_SCOPE_UNIVERSE, RT_SCOPE_LINK = 0, 4, 0, 253
FR_ACT_TO_TBL = 1
# enum of linux/fib_rules.h and linux/rtnetlink.h; the numbers of table and priority are the same in both.
_DST, _IIFNAME, _OIF, _PRIORITY, _PREFSRC, _FWMARK, _TABLE, _FWMASK, _OIFNAME = 1, 3, 4, 6, 7, 10, 15, 16, 17
_UID_RANGE, _IP_PROTO, _DPORT_RANGE = 20, 22, 24
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS, _IFLA_MTU = 1, 2, 8, 4
_RECEIVE_TIMEOUT = 1.0  # seconds; the kernel has answered before send() returns
_HARMLESS = frozenset({0, errno.EEXIST})

Message = tuple[int, bytes]


def _family(version: int) -> int:
    return socket.AF_INET if version == IPV4 else socket.AF_INET6


def _pack_address(version: int, text: str) -> bytes:
    return socket.inet_pton(_family(version), text)


def _number(kind: int, value: int) -> bytes:
    return write_attribute(kind, struct.pack("=I", value))


def encode_rule(rule: RoutingRule) -> Message:
    """A rule (struct fib_rule_hdr, enum FRA_*)."""
    address, _, length = (rule.destination or "").partition("/")
    body = struct.pack("=BBBBBBBBI", _family(rule.version), int(length or 0), 0, 0, 0, 0, 0, FR_ACT_TO_TBL, 0)
    body += _number(_TABLE, rule.table) + _number(_PRIORITY, rule.priority)
    if address:
        body += write_attribute(_DST, _pack_address(rule.version, address))
    for kind, name in ((_IIFNAME, rule.input_interface), (_OIFNAME, rule.output_interface)):
        if name is not None:
            body += write_attribute(kind, name.encode() + b"\0")
    if rule.fwmark is not None:
        body += _number(_FWMARK, rule.fwmark) + _number(_FWMASK, MARK_MASK)
    if rule.uid_range is not None:
        body += write_attribute(_UID_RANGE, struct.pack("=II", *rule.uid_range))
    if rule.protocol is not None:
        body += write_attribute(_IP_PROTO, struct.pack("=B", rule.protocol))
    if rule.destination_port is not None:
        body += write_attribute(_DPORT_RANGE, struct.pack("=HH", rule.destination_port, rule.destination_port))
    return RTM_NEWRULE, body


def encode_route(route: Route, tun_index: int) -> Message:
    """A route of the private table (struct rtmsg, enum RTA_*)."""
    address, _, length = route.destination.partition("/")
    kind = RTN_UNREACHABLE if route.unreachable else RTN_UNICAST
    scope = RT_SCOPE_LINK if route.version == IPV4 and not route.unreachable else RT_SCOPE_UNIVERSE
    head = (_family(route.version), int(length), 0, 0, RT_TABLE_UNSPEC, RTPROT_STATIC, scope, kind, 0)
    body = struct.pack("=BBBBBBBBI", *head) + _number(_TABLE, names.ROUTE_TABLE) + _number(_PRIORITY, route.metric)
    if int(length):
        body += write_attribute(_DST, _pack_address(route.version, address))
    if not route.unreachable:
        body += _number(_OIF, tun_index)
        if route.source is not None:
            body += write_attribute(_PREFSRC, _pack_address(route.version, route.source))
    return RTM_NEWROUTE, body


def encode_tun(index: int) -> tuple[Message, ...]:
    """Our TUN set up, and its addresses (struct ifinfomsg, struct ifaddrmsg)."""
    messages = [
        (RTM_NEWLINK, struct.pack("=BxHiII", 0, 0, index, IFF_UP, IFF_UP) + _number(_IFLA_MTU, names.TUN_MTU)),
    ]
    for version, text, prefix, nodad in ((4, names.TUN_IPV4, 24, 0), (6, names.TUN_IPV6, 64, IFA_F_NODAD)):
        packed = _pack_address(version, text)
        body = struct.pack("=BBBBI", _family(version), prefix, 0, 0, index) + write_attribute(_IFA_ADDRESS, packed)
        body += write_attribute(_IFA_LOCAL, packed) + _number(_IFA_FLAGS, IFA_F_NOPREFIXROUTE | nodad)
        messages.append((RTM_NEWADDR, body))
    return tuple(messages)


class RouteSocket:
    """A netlink socket that adds, and waits for the kernel's answer to each addition."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.bind((0, 0))
        self._socket.settimeout(_RECEIVE_TIMEOUT)
        self._sequence = 0

    @property
    def port(self) -> int:
        """The port id, by which announcements tell whose change it was."""
        return int(self._socket.getsockname()[0])

    def close(self) -> None:
        """Close the socket; what it did stays."""
        self._socket.close()

    def add(self, messages: Iterable[Message]) -> list[str]:
        """Add what is missing.

        Returns:
            What the kernel said of those that it did not add, other than that they are there already.

        Raises:
            OSError: it did not answer.
        """
        data, wanted = b"", {}
        for kind, body in messages:
            self._sequence = self._sequence % 0x7FFFFFFF + 1
            # A link is changed, never made by this; and an address that is there would only be refused.
            flags = NLM_F_REQUEST | NLM_F_ACK | (0 if kind == RTM_NEWLINK else NLM_F_CREATE | NLM_F_EXCL)
            data += HEADER.pack(HEADER.size + len(body), kind, flags, self._sequence, 0) + body
            data += b"\0" * (-len(data) % 4)
            wanted[self._sequence] = kind
        if not wanted:
            return []
        self._socket.send(data)
        refused = []
        while wanted:
            answers = self._socket.recv(1 << 16)
            offset = 0
            while offset + HEADER.size + 4 <= len(answers):
                length, kind, _, sequence, _ = HEADER.unpack_from(answers, offset)
                if kind == NLMSG_ERROR and sequence in wanted:
                    number = -struct.unpack_from("=i", answers, offset + HEADER.size)[0]
                    if number not in _HARMLESS:
                        refused.append(f"{wanted[sequence]}: {os.strerror(number)}")
                    del wanted[sequence]
                offset += max((length + 3) & ~3, HEADER.size)
        return refused
