# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The TUN device: made persistent, owned by psiphon-user, single queue (tuntap.rst of the kernel documentation)."""

import asyncio
import contextlib
import fcntl
import logging
import os
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

from psiphon_vpn.linux.ipv6 import Ipv6, read_ipv6
from psiphon_vpn.linux.loopback import name_loopback
from psiphon_vpn.linux.rtbatch import RTN_LOCAL, encode_link_removal, encode_loopback, encode_tun, encode_up
from psiphon_vpn.linux.rtlist import find_link, list_addresses, list_local
from psiphon_vpn.linux.rtnetlink import RTM_DELADDR, RouteSocket
from psiphon_vpn.linux.rtvalues import IFF_UP, Link, find_misfit
from psiphon_vpn.policy import names
from psiphon_vpn.policy.routing import IPV6
from psiphon_vpn.policy.sysctls import TUN_SYSCTLS

TUNSETIFF, TUNSETPERSIST, TUNSETOWNER = 0x400454CA, 0x400454CB, 0x400454CC
IFF_TUN, IFF_NO_PI, IFF_TUN_EXCL = 0x0001, 0x1000, 0x8000
IFLA_TUN = {"OWNER": 1, "GROUP": 2, "TYPE": 3, "PI": 4, "VNET_HDR": 5, "PERSIST": 6, "MULTI_QUEUE": 7}
"""The kernel's attributes of a TUN by number (linux/if_link.h, Linux 4.20)."""
TUN_DEVICE = Path("/dev/net/tun")
LOOPBACK, LOOPBACK_NETWORK = "127.0.0.1", "127.0.0.0"
_ATTEMPTS = 3
"""Attempts to correct the TUN; before the last one it is replaced."""
_SETTLING = (0.002, 0.01, 0.05, 0.2)

log = logging.getLogger(__name__)


class TunError(Exception):
    """The TUN cannot be made, or is not ours."""


class TunReplaced(TunError):
    """The TUN is not the same device as before: a core that holds the old one is of no use."""


class TunSetDown(TunError):
    """Another program set the TUN down while it or its routes were made. The kernel takes no route into it."""


@dataclass(frozen=True)
class Tun:
    """Our TUN, identified by its index: no other device can take that over."""

    index: int


def make_tun(uid: int) -> None:
    """Make the device, persistent, with its kernel settings; still down and without an address.

    Raises:
        TunError: it cannot be made, or something has its name.
    """
    request = struct.pack("16sH22x", names.TUN_NAME.encode(), IFF_TUN | IFF_NO_PI | IFF_TUN_EXCL)
    try:
        descriptor = os.open(TUN_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise TunError(f"{TUN_DEVICE}: {error.strerror}") from error
    try:
        fcntl.ioctl(descriptor, TUNSETIFF, request)
        fcntl.ioctl(descriptor, TUNSETOWNER, uid)
        fcntl.ioctl(descriptor, TUNSETPERSIST, 1)
    except OSError as error:
        raise TunError(f"{names.TUN_NAME}: {error.strerror}") from error
    finally:
        os.close(descriptor)
    _set_sysctls()


def _set_sysctls() -> None:
    for path, value in TUN_SYSCTLS.items():
        with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6, or older than the setting
            (Path("/proc/sys") / path).write_text(value)


def read_attributes(link: Link) -> dict[str, int]:
    """IFLA_TUN_* of a TUN or TAP by name; attributes that the kernel does not report are missing."""
    return {
        name: int.from_bytes(link.data[number], sys.byteorder)
        for name, number in IFLA_TUN.items()
        if link.kind == "tun" and number in link.data
    }


def _is_ours(link: Link, uid: int) -> bool:
    """Whether this is a persistent, single-queue TUN of that owner and no group."""
    said = read_attributes(link)
    return (
        said.get("TYPE") == IFF_TUN
        and said.get("OWNER") == uid
        and "GROUP" not in said
        and not said.get("PI")
        and not said.get("VNET_HDR")
        and not said.get("MULTI_QUEUE")
        and bool(said.get("PERSIST"))
    )


@dataclass(frozen=True)
class TunTrouble:
    """What is wrong with the TUN. gone: the name belongs to another device, or to none."""

    detail: str
    gone: bool


async def ensure_tun(socket: RouteSocket, *, uid: int, anew: bool = False) -> Tun:
    """Make the TUN, or correct the one that is there, and give it its addresses.

    A device with our name that is not a TUN of that owner is removed, since the name stands in the rules. So is a TUN
    that cannot be corrected.

    Args:
        socket: by which changes are made.
        uid: the owner.
        anew: replace an existing one in any case.

    Raises:
        TunError: it cannot be made; why, in English.
    """
    said: list[str] = []
    try:
        for attempt in range(_ATTEMPTS):
            tun = _take_tun(socket, uid=uid, anew=anew if attempt == 0 else attempt == _ATTEMPTS - 1)
            refused = await _put_right(socket, tun.index)
            trouble = await _settle(tun, uid)
            if trouble is None:
                return tun
            said = [trouble.detail, *refused[:1]]
    except OSError as error:
        raise TunError(error.strerror or str(error)) from error
    wrong = f"{names.TUN_NAME}: {', '.join(said)}"
    raise TunError(wrong) if find_tun_set_down(uid) is None else TunSetDown(wrong)


def find_tun_set_down(uid: int) -> Tun | None:
    """That owner's TUN if it exists and is down, which only another program can cause; None also without an answer."""
    try:
        found = find_link(names.TUN_NAME)
    except OSError:
        return None
    return Tun(found.index) if found is not None and _is_ours(found, uid) and not found.flags & IFF_UP else None


async def _settle(tun: Tun, uid: int) -> TunTrouble | None:
    """What stays wrong for more than a moment: the kernel makes its entry for an IPv6 address a little later."""
    trouble = await check_tun(tun, uid=uid)
    for pause in _SETTLING:
        if trouble is None or trouble.gone:
            break
        await asyncio.sleep(pause)
        trouble = await check_tun(tun, uid=uid)
    return trouble


def _take_tun(socket: RouteSocket, *, uid: int, anew: bool) -> Tun:
    found = find_link(names.TUN_NAME)
    if found is not None and (anew or not _is_ours(found, uid)):
        if not _is_ours(found, uid):
            log.warning("another device has the name %s, which the rules let pass: it is removed", names.TUN_NAME)
        socket.change(*encode_link_removal(found.index))
        found = None
    if found is None:
        make_tun(uid)
        found = find_link(names.TUN_NAME)
    if found is None:
        raise TunError(f"{names.TUN_NAME} disappeared as soon as it was made")
    return Tun(found.index)


def _wanted_addresses() -> list[tuple[str, int]]:
    ipv6 = read_ipv6(names.TUN_NAME) is Ipv6.ON
    return [(names.TUN_IPV4, 24), (names.TUN_IPV6, 64)][: 2 if ipv6 else 1]


async def _put_right(socket: RouteSocket, index: int) -> list[str]:
    """Returns what the kernel refused."""
    _set_sysctls()
    socket.add([encode_up(index)])  # before the addresses are read: a small MTU removes IPv6
    wanted = _wanted_addresses()
    for address in await list_addresses(index):
        # The kernel restores its own entry for an address only with the address itself.
        if (address.text, address.prefix) not in wanted or (
            address.version == IPV6 and not await _has_local(address.text)
        ):
            with contextlib.suppress(OSError):  # already gone
                socket.change(RTM_DELADDR, address.body)
    loopback = encode_loopback(names.LOOPBACK_INDEX)
    return socket.add([*encode_tun(index, ipv6=len(wanted) > 1), *loopback])


async def _has_local(*addresses: str) -> bool:
    """Whether this machine accepts packets to one of these addresses."""
    for address in addresses:
        if any(route.type == RTN_LOCAL for route in await list_local(address)):
            return True
    return False


async def check_tun(tun: Tun, *, uid: int) -> TunTrouble | None:
    """Check the TUN, its addresses, and the kernel's own entries for them; None if nothing is wrong.

    Raises:
        OSError: the kernel does not answer.
    """
    found = find_link(names.TUN_NAME)
    if found is None or found.index != tun.index:
        return TunTrouble("the TUN is gone, or another device has its name", gone=True)
    if not _is_ours(found, uid):
        return TunTrouble("the TUN is not ours", gone=True)
    if not found.flags & IFF_UP:
        return TunTrouble("the TUN is down", gone=False)
    if misfit := find_misfit(found):
        return TunTrouble(misfit, gone=False)
    addresses = {(address.text, address.prefix) for address in await list_addresses(tun.index)}
    for text, prefix in _wanted_addresses():
        if (text, prefix) not in addresses:
            return TunTrouble("the TUN has lost an address", gone=False)
        if not await _has_local(text):
            return TunTrouble("the table 'local' has lost the TUN's address", gone=False)
    lo = find_link(name_loopback())
    if lo is not None and lo.flags & IFF_UP and not await _has_local(LOOPBACK, LOOPBACK_NETWORK):
        return TunTrouble("the table 'local' has lost the loopback network", gone=False)
    return None
