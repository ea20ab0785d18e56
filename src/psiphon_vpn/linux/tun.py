"""The TUN device: made persistent, owned by psiphon-user, single queue (tuntap.rst of the kernel documentation)."""

import contextlib
import fcntl
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from psiphon_vpn.policy import names
from psiphon_vpn.policy.sysctls import TUN_SYSCTLS

TUNSETIFF, TUNSETPERSIST, TUNSETOWNER = 0x400454CA, 0x400454CB, 0x400454CC
IFF_TUN, IFF_NO_PI, IFF_TUN_EXCL = 0x0001, 0x1000, 0x8000
TUN_DEVICE = Path("/dev/net/tun")


class TunError(Exception):
    """The TUN cannot be made, or is not ours."""


@dataclass(frozen=True)
class Tun:
    """Our TUN, by the one thing that no other device can take over: its index."""

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


async def _find(ipr: AsyncIPRoute) -> Any | None:
    async for link in await ipr.get_links():
        if link.get("ifname") == names.TUN_NAME:
            return link
    return None


def _is_ours(link: Any, uid: int) -> bool:
    """Whether this is a persistent, single-queue TUN of that owner and no group (IFLA_TUN_*, Linux 4.20)."""
    if link.get(("linkinfo", "kind")) != "tun":
        return False
    data = link.get(("linkinfo", "data"))
    return (
        data is not None
        and data.get("IFLA_TUN_TYPE") == IFF_TUN
        and data.get("IFLA_TUN_OWNER") == uid
        and data.get("IFLA_TUN_GROUP") is None
        and not data.get("IFLA_TUN_PI")
        and not data.get("IFLA_TUN_VNET_HDR")
        and not data.get("IFLA_TUN_MULTI_QUEUE")
        and bool(data.get("IFLA_TUN_PERSIST"))
    )


async def ensure_tun(ipr: AsyncIPRoute, *, uid: int) -> Tun:
    """Make the TUN, or put right the one that is there, and give it its addresses.

    A device that has our name and is no TUN of our owner is removed: its name stands in the rules.

    Raises:
        TunError: it cannot be made; why, in English.
    """
    try:
        found = await _find(ipr)
        if found is not None and not _is_ours(found, uid):
            await ipr.link("del", index=found["index"])
            found = None
        if found is None:
            make_tun(uid)
            found = await _find(ipr)
        if found is None:
            raise TunError(f"{names.TUN_NAME} is gone as soon as it is made")
        index = found["index"]
        _set_sysctls()
        await ipr.link("set", index=index, mtu=names.TUN_MTU, state="up")
        await _set_addresses(ipr, index)
    except (OSError, NetlinkError) as error:
        raise TunError(str(error)) from error
    return Tun(index)


async def _set_addresses(ipr: AsyncIPRoute, index: int) -> None:
    wanted = {(names.TUN_IPV4, 24), (names.TUN_IPV6, 64)}
    present = set()
    async for address in await ipr.get_addr(index=index):
        entry = (address.get("local") or address.get("address"), address["prefixlen"])
        if entry in wanted:
            present.add(entry)
        else:
            await ipr.addr("del", index=index, address=entry[0], prefixlen=entry[1])
    for text, prefix in sorted(wanted - present):
        # IFA_F_NOPREFIXROUTE (0x200): the routes are in the private table; IFA_F_NODAD (0x02): nobody to ask.
        await ipr.addr("add", index=index, address=text, prefixlen=prefix, flags=0x202 if ":" in text else 0x200)


@dataclass(frozen=True)
class TunTrouble:
    """Why the TUN is not the one that was made. gone: it is another device, or none."""

    detail: str
    gone: bool


async def check_tun(ipr: AsyncIPRoute, tun: Tun, *, uid: int) -> TunTrouble | None:
    """Look at the TUN; None when all is well."""
    found = await _find(ipr)
    if found is None or found["index"] != tun.index:
        return TunTrouble("the TUN is gone, or another device has its name", gone=True)
    if not _is_ours(found, uid):
        return TunTrouble("the TUN is not ours", gone=True)
    return None if found["flags"] & 1 else TunTrouble("the TUN is down", gone=False)
