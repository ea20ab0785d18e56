# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The four listings of rtnetlink(7) that the service reads: links, addresses, routes and rules; each complete."""

import errno
import socket
import struct
from collections.abc import Callable
from typing import TypeVar

from psiphon_vpn.linux.netlink import write_attribute
from psiphon_vpn.linux.rtnetlink import RTM_GETADDR, RTM_GETLINK, RTM_GETROUTE, RTM_GETRULE, ask, list_all
from psiphon_vpn.linux.rtvalues import (
    FAMILY,
    IFADDRMSG,
    IFINFOMSG,
    IFLA_IFNAME,
    RTA_DST,
    RTA_OIF,
    RTA_TABLE,
    RTMSG,
    Address,
    KernelRoute,
    KernelRule,
    Link,
    decode_address,
    decode_default,
    decode_link,
    decode_route,
    decode_rule,
    encode_name,
)
from psiphon_vpn.policy.routing import IPV4, IPV6, LOCAL_TABLE

T = TypeVar("T")
_RTA_UID, _RTN_UNICAST = 25, 1
_IFLA_EXT_MASK, _RTEXT_FILTER_SKIP_STATS = 29, 8
_NO_IPV6 = frozenset({errno.EAFNOSUPPORT, errno.EOPNOTSUPP})
"""The answers for a family that the kernel does not have ("ipv6.disable=1")."""
_NO_WAY = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL})
"""The answers for an address with a route of type unreachable, prohibit or blackhole, or without any route."""
_NO_DEVICE, _NO_TABLE = frozenset({errno.ENODEV}), frozenset({errno.ENOENT, errno.ENODEV})
"""The answers if the one object that was asked for does not exist."""


async def _list_family(
    version: int, kind: int, body: bytes, decode: Callable[[int, bytes], T | None], absent: frozenset[int]
) -> tuple[T, ...]:
    """As `list_all`; empty if the kernel has no such IP version, table or device."""
    try:
        return await list_all(kind, body, decode)
    except OSError as error:
        if error.errno in absent or (version == IPV6 and error.errno in _NO_IPV6):
            return ()
        raise


async def list_links() -> tuple[Link, ...]:
    """All links.

    Raises:
        OSError: as for `list_all`.
    """
    # Without the counters, which are most of each message.
    mask = write_attribute(_IFLA_EXT_MASK, struct.pack("=I", _RTEXT_FILTER_SKIP_STATS))
    return await list_all(RTM_GETLINK, IFINFOMSG.pack(0, 0, 0, 0, 0) + mask, decode_link)


def find_link(name: str) -> Link | None:
    """The link with that name; None if there is none.

    Raises:
        OSError: the kernel does not answer.
    """
    try:
        answers = ask(RTM_GETLINK, IFINFOMSG.pack(0, 0, 0, 0, 0) + write_attribute(IFLA_IFNAME, encode_name(name)))
    except OSError as error:
        if error.errno in _NO_DEVICE:
            return None
        raise
    return next((link for link in (decode_link(*answer) for answer in answers) if link is not None), None)


async def list_addresses(index: int = 0) -> tuple[Address, ...]:
    """The addresses of an interface, or of all (0). A kernel without IPv6 lists those of IPv4.

    Raises:
        OSError: as for `list_all`.
    """

    def decode(kind: int, body: bytes) -> Address | None:
        address = decode_address(kind, body)
        return address if address is not None and index in {0, address.index} else None

    found: list[Address] = []
    for version, family in FAMILY.items():
        listed = await _list_family(version, RTM_GETADDR, IFADDRMSG.pack(family, 0, 0, 0, index), decode, _NO_DEVICE)
        found += [address for address in listed if address.version == version]
    return tuple(found)


async def list_routes(
    version: int, *, table: int | None = None, device: int | None = None, defaults: bool = False
) -> tuple[KernelRoute, ...]:
    """Routes of one IP version; none on a kernel without it.

    Args:
        version: 4 or 6.
        table: only routes of this table.
        device: only routes by this interface.
        defaults: only default routes.

    Raises:
        OSError: as for `list_all`.
    """
    chosen = decode_default if defaults else decode_route

    def decode(kind: int, body: bytes) -> KernelRoute | None:
        route = chosen(kind, body)
        if route is None or route.version != version or table not in {None, route.table}:
            return None
        return route if device is None or any(hop.device == device for hop in route.hops) else None

    body = RTMSG.pack(FAMILY[version], 0, 0, 0, 0, 0, 0, 0, 0)
    for kind, value in ((RTA_TABLE, table), (RTA_OIF, device)):
        if value is not None:
            body += write_attribute(kind, struct.pack("=I", value))
    return await _list_family(version, RTM_GETROUTE, body, decode, _NO_TABLE)


def find_way(version: int, destination: str, uid: int) -> int | None:
    """Index of the device by which the kernel would send a user's packet to an address; None if it would not send it.

    Raises:
        OSError: the kernel does not answer.
    """
    packed = socket.inet_pton(FAMILY[version], destination)
    body = RTMSG.pack(FAMILY[version], len(packed) * 8, 0, 0, 0, 0, 0, 0, 0)
    body += write_attribute(RTA_DST, packed) + write_attribute(_RTA_UID, struct.pack("=I", uid))
    try:
        answers = ask(RTM_GETROUTE, body)
    except OSError as error:
        if error.errno in _NO_WAY:
            return None
        raise
    found = (decode_route(*answer) for answer in answers)
    devices = [hop.device for route in found if route is not None and route.type == _RTN_UNICAST for hop in route.hops]
    return devices[0] if devices else None


async def list_local(address: str) -> tuple[KernelRoute, ...]:
    """The entries of the table `local` for one address, or for the first address of a network, whatever its length.

    Raises:
        OSError: as for `list_all`.
    """
    version = IPV6 if ":" in address else IPV4
    packed = socket.inet_pton(FAMILY[version], address)

    def decode(kind: int, body: bytes) -> KernelRoute | None:
        # A machine may have thousands of others.
        route = decode_route(kind, body) if packed in body else None
        wanted = route is not None and route.version == version and route.table == LOCAL_TABLE
        return route if route is not None and wanted and route.destination.startswith(f"{address}/") else None

    body = RTMSG.pack(FAMILY[version], 0, 0, 0, 0, 0, 0, 0, 0)
    body += write_attribute(RTA_TABLE, struct.pack("=I", LOCAL_TABLE))
    return await _list_family(version, RTM_GETROUTE, body, decode, _NO_TABLE)


async def knows_ipv6() -> bool:
    """Whether the kernel has routing rules for IPv6.

    Raises:
        OSError: as for `list_all`.
    """
    try:
        await list_all(RTM_GETRULE, RTMSG.pack(FAMILY[IPV6], 0, 0, 0, 0, 0, 0, 0, 0), lambda kind, body: None)
    except OSError as error:
        if error.errno in _NO_IPV6:
            return False
        raise
    return True


async def list_rules(version: int) -> tuple[KernelRule, ...]:
    """Rules of one IP version; none on a kernel without it.

    Raises:
        OSError: as for `list_all`.
    """

    def decode(kind: int, body: bytes) -> KernelRule | None:
        found = decode_rule(kind, body)
        return found if found is not None and found.rule.version == version else None

    body = RTMSG.pack(FAMILY[version], 0, 0, 0, 0, 0, 0, 0, 0)
    return await _list_family(version, RTM_GETRULE, body, decode, frozenset())
