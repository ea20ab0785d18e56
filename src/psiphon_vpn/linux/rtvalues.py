# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What rtnetlink(7) says about links, addresses, routes and rules, as values. Layouts: linux/rtnetlink.h."""

import socket
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from psiphon_vpn.linux.netlink import read_attributes
from psiphon_vpn.linux.rtnetlink import RTM_NEWADDR, RTM_NEWLINK, RTM_NEWROUTE, RTM_NEWRULE
from psiphon_vpn.policy import names
from psiphon_vpn.policy.routing import IPV4, IPV6, MARK_MASK, RoutingRule
from psiphon_vpn.policy.values import decode_name

FAMILY = {IPV4: int(socket.AF_INET), IPV6: int(socket.AF_INET6)}
VERSION = {family: version for version, family in FAMILY.items()}
IFF_UP, IFF_LOWER_UP = 0x1, 0x10000
IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_MASTER, IFLA_TXQLEN, IFLA_LINKINFO, IFLA_LINK_NETNSID = 3, 4, 5, 10, 13, 18, 37
IFLA_PARENT_DEV_NAME = 56
IFLA_INFO_KIND, IFLA_INFO_DATA = 1, 2
IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS = 1, 2, 8
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC = 1, 4, 5, 6, 7
RTA_MULTIPATH, RTA_TABLE, RTA_VIA = 9, 15, 18
FRA_DST, FRA_IIFNAME, FRA_PRIORITY, FRA_FWMARK, FRA_TABLE, FRA_FWMASK, FRA_OIFNAME = 1, 3, 6, 10, 15, 16, 17
FRA_UID_RANGE, FRA_IP_PROTO, FRA_DPORT_RANGE = 20, 22, 24
FR_ACT_TO_TBL, FIB_RULE_INVERT = 1, 0x2
IFINFOMSG, IFADDRMSG, RTMSG = struct.Struct("=BxHiII"), struct.Struct("=BBBBI"), struct.Struct("=BBBBBBBBI")
"""RTMSG is the layout of struct fib_rule_hdr too."""
_ODD_IN_ROUTE = frozenset({RTA_GATEWAY, 8, RTA_MULTIPATH, RTA_VIA, 19, 21, 22, 30})
"""RTA_METRICS 8, NEWDST 19, ENCAP_TYPE 21, ENCAP 22, NH_ID 30. Listed one by one, since a later kernel may add
attributes to every route, and then no route would count as ours."""
_ODD_IN_RULE = frozenset({2, 4, 12, 19, 23, 25, 26, 27, 28, 30})
"""FRA_SRC 2, GOTO 4, TUN_ID 12, L3MDEV 19, SPORT_RANGE 23, DSCP 25, FLOWLABEL 26 and its mask 27, SPORT_MASK 28,
DSCP_MASK 30."""
_FULL_IN_RULE = frozenset({13, 14, 29})
"""FRA_SUPPRESS_IFGROUP 13, SUPPRESS_PREFIXLEN 14, DPORT_MASK 29: all bits set means: not used."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """An interface.

    Attributes:
        flags: IFF_*.
        hardware: ARPHRD_*.
        kind: IFLA_INFO_KIND, None for hardware.
        data: IFLA_INFO_DATA by number, with a meaning that depends on the kind.
        lower: index of the interface below it; None if there is none in this network namespace.
        master: index of the interface that it is a port of; None if there is none.
        queue: how many packets may wait for it (txqueuelen of ip-link(8)); None if the kernel does not say.
        card: a device of a bus is behind it (IFLA_PARENT_DEV_NAME, Linux 5.14): "device" below /sys/class/net/NAME.
    """

    index: int
    name: str
    flags: int
    hardware: int
    mtu: int
    kind: str | None
    data: Mapping[int, bytes] = field(default_factory=dict)
    lower: int | None = None
    master: int | None = None
    queue: int | None = None
    card: bool = False


@dataclass(frozen=True, kw_only=True)
class Address:
    """An address of an interface. flags: IFA_F_*; body: the kernel's encoding, with which it can be removed."""

    version: int
    index: int
    text: str
    prefix: int
    scope: int
    flags: int
    body: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Hop:
    """One next hop of a route."""

    device: int | None
    gateway: str | None


@dataclass(frozen=True, kw_only=True)
class KernelRoute:
    """A route.

    Attributes:
        destination: with its prefix length.
        type: RTN_*.
        hops: more than one in a multipath route.
        plain: only destination, one device, metric and source; no gateway, encapsulation or MTU.
    """

    version: int
    table: int
    destination: str
    type: int
    scope: int
    metric: int
    source: str | None
    hops: tuple[Hop, ...]
    plain: bool


@dataclass(frozen=True, kw_only=True)
class KernelRule:
    """A rule. body: the kernel's encoding, with which it can be removed."""

    rule: RoutingRule
    body: bytes = field(repr=False)


def read_name(value: bytes) -> str:
    """The name of an interface, which ends at a zero."""
    return decode_name(value.split(b"\0")[0])


def encode_name(name: str) -> bytes:
    """The other way round."""
    return name.encode("utf-8", "surrogateescape") + b"\0"


def _number(attributes: Mapping[int, bytes], kind: int) -> int:
    return int.from_bytes(attributes.get(kind, b""), sys.byteorder)


def _address(version: int, packed: bytes) -> str | None:
    try:
        return socket.inet_ntop(FAMILY[version], packed)
    except ValueError:
        return None


def decode_link(kind: int, body: bytes) -> Link | None:
    """A link; None of anything else. Never raises, whatever the bytes."""
    if kind != RTM_NEWLINK or len(body) < IFINFOMSG.size:
        return None
    _, hardware, index, flags, _ = IFINFOMSG.unpack_from(body)
    attributes = read_attributes(body[IFINFOMSG.size :])
    info = read_attributes(attributes.get(IFLA_LINKINFO, b""))
    return Link(
        index=index,
        name=read_name(attributes.get(IFLA_IFNAME, b"")),
        flags=flags,
        hardware=hardware,
        mtu=_number(attributes, IFLA_MTU),
        kind=read_name(info[IFLA_INFO_KIND]) if IFLA_INFO_KIND in info else None,
        data=read_attributes(info.get(IFLA_INFO_DATA, b"")),
        lower=None if IFLA_LINK_NETNSID in attributes else _number(attributes, IFLA_LINK) or None,
        master=_number(attributes, IFLA_MASTER) or None,
        queue=_number(attributes, IFLA_TXQLEN) if IFLA_TXQLEN in attributes else None,
        card=IFLA_PARENT_DEV_NAME in attributes,
    )


def find_misfit(link: Link) -> str | None:
    """What keeps packets in our TUN from the core, or truncates them; None if nothing does."""
    if link.mtu > names.TUN_MTU:
        return "the TUN's MTU is too large for the core"
    if link.queue == 0:
        return "no packet may wait in the TUN"
    return "the TUN is a port of another device" if link.master else None


def decode_address(kind: int, body: bytes) -> Address | None:
    """An IPv4 or IPv6 address; None of anything else. Never raises, whatever the bytes."""
    if kind != RTM_NEWADDR or len(body) < IFADDRMSG.size:
        return None
    family, prefix, flags, scope, index = IFADDRMSG.unpack_from(body)
    attributes = read_attributes(body[IFADDRMSG.size :])
    version = VERSION.get(family)
    if version is None:
        return None
    text = _address(version, attributes.get(IFA_LOCAL) or attributes.get(IFA_ADDRESS, b""))
    if text is None:
        return None
    return Address(
        version=version,
        index=index,
        text=text,
        prefix=prefix,
        scope=scope,
        flags=_number(attributes, IFA_FLAGS) if IFA_FLAGS in attributes else flags,
        body=body,
    )


def _gateway(version: int, attributes: Mapping[int, bytes]) -> str | None:
    if RTA_GATEWAY in attributes:
        return _address(version, attributes[RTA_GATEWAY])
    via = attributes.get(RTA_VIA, b"")  # IPv4 with an IPv6 gateway: family, address
    other = VERSION.get(int.from_bytes(via[:2], sys.byteorder))
    return _address(other, via[2:]) if other is not None else None


def _decode_hops(version: int, data: bytes) -> tuple[Hop, ...]:
    """The next hops in a series of struct rtnexthop: length, flags, hops, index; then attributes."""
    hops, offset = [], 0
    while offset + 8 <= len(data):
        length, _, _, index = struct.unpack_from("=HBBi", data, offset)
        if length < 8:
            break
        attributes = read_attributes(data[offset + 8 : offset + length])
        hops.append(Hop(device=index, gateway=_gateway(version, attributes)))
        offset += (length + 3) & ~3
    return tuple(hops)


def decode_route(kind: int, body: bytes) -> KernelRoute | None:
    """An IPv4 or IPv6 route; None of anything else. Never raises, whatever the bytes."""
    if kind != RTM_NEWROUTE or len(body) < RTMSG.size:
        return None
    family, length, source_length, tos, table, _, scope, type_, _ = RTMSG.unpack_from(body)
    version = VERSION.get(family)
    if version is None:
        return None
    attributes = read_attributes(body[RTMSG.size :])
    unspecified = "0.0.0.0" if version == IPV4 else "::"  # noqa: S104  a destination
    destination = _address(version, attributes[RTA_DST]) if RTA_DST in attributes else unspecified
    if destination is None:
        return None
    hops = _decode_hops(version, attributes.get(RTA_MULTIPATH, b""))
    if not hops:
        device = _number(attributes, RTA_OIF) if RTA_OIF in attributes else None
        hops = (Hop(device=device, gateway=_gateway(version, attributes)),)
    return KernelRoute(
        version=version,
        table=_number(attributes, RTA_TABLE) if RTA_TABLE in attributes else table,
        destination=f"{destination}/{length}",
        type=type_,
        scope=scope,
        metric=_number(attributes, RTA_PRIORITY),
        source=_address(version, attributes[RTA_PREFSRC]) if RTA_PREFSRC in attributes else None,
        hops=hops,
        plain=_ODD_IN_ROUTE.isdisjoint(attributes) and not source_length and not tos,
    )


def decode_default(kind: int, body: bytes) -> KernelRoute | None:
    """The same for default routes only: there may be a million others, which cost next to nothing."""
    return decode_route(kind, body) if len(body) > 1 and body[1] == 0 else None


def _is_odd(attributes: Mapping[int, bytes]) -> bool:
    full = (value for kind, value in attributes.items() if kind in _FULL_IN_RULE)
    return not _ODD_IN_RULE.isdisjoint(attributes) or any(value.strip(b"\xff") for value in full)


def decode_rule(kind: int, body: bytes) -> KernelRule | None:
    """An IPv4 or IPv6 rule; None of anything else. Never raises, whatever the bytes."""
    if kind != RTM_NEWRULE or len(body) < RTMSG.size:
        return None
    family, length, source_length, tos, table, _, _, action, flags = RTMSG.unpack_from(body)
    version = VERSION.get(family)
    if version is None:
        return None
    attributes = read_attributes(body[RTMSG.size :])
    destination = _address(version, attributes[FRA_DST]) if FRA_DST in attributes else None
    mark, mask = _number(attributes, FRA_FWMARK), _number(attributes, FRA_FWMASK)
    uids, ports = attributes.get(FRA_UID_RANGE, b""), attributes.get(FRA_DPORT_RANGE, b"")
    low, high = struct.unpack("=HH", ports) if len(ports) == 4 else (None, None)
    odd_mark = (mark or mask) and (not mark or mask != MARK_MASK)
    rule = RoutingRule(
        version=version,
        priority=_number(attributes, FRA_PRIORITY),
        table=_number(attributes, FRA_TABLE) if FRA_TABLE in attributes else table,
        destination=f"{destination}/{length}" if destination is not None else None,
        input_interface=read_name(attributes[FRA_IIFNAME]) if FRA_IIFNAME in attributes else None,
        output_interface=read_name(attributes[FRA_OIFNAME]) if FRA_OIFNAME in attributes else None,
        fwmark=mark if mark and mask == MARK_MASK else None,
        uid_range=struct.unpack("=II", uids) if len(uids) == 8 else None,
        protocol=_number(attributes, FRA_IP_PROTO) if FRA_IP_PROTO in attributes else None,
        destination_port=low,
        inverted=bool(flags & FIB_RULE_INVERT),
        odd=bool(action != FR_ACT_TO_TBL or source_length or tos or low != high or odd_mark) or _is_odd(attributes),
    )
    return KernelRule(rule=rule, body=body)
