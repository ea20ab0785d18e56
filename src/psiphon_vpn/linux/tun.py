"""The TUN device: made persistent, owned by psiphon-user, single queue (tuntap.rst of the kernel documentation)."""

import contextlib
import fcntl
import os
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

from psiphon_vpn.linux.rtbatch import encode_link_removal, encode_tun
from psiphon_vpn.linux.rtlist import find_link, list_addresses
from psiphon_vpn.linux.rtnetlink import RTM_DELADDR, RouteSocket
from psiphon_vpn.linux.rtvalues import IFF_UP, Link
from psiphon_vpn.policy import names
from psiphon_vpn.policy.sysctls import TUN_SYSCTLS

TUNSETIFF, TUNSETPERSIST, TUNSETOWNER = 0x400454CA, 0x400454CB, 0x400454CC
IFF_TUN, IFF_NO_PI, IFF_TUN_EXCL = 0x0001, 0x1000, 0x8000
IFLA_TUN = {"OWNER": 1, "GROUP": 2, "TYPE": 3, "PI": 4, "VNET_HDR": 5, "PERSIST": 6, "MULTI_QUEUE": 7}
"""What the kernel tells of a TUN, by its number (linux/if_link.h, Linux 4.20)."""
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


def read_attributes(link: Link) -> dict[str, int]:
    """IFLA_TUN_* of a TUN or TAP by name; what the kernel does not say is not there."""
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


async def ensure_tun(socket: RouteSocket, *, uid: int) -> Tun:
    """Make the TUN, or put right the one that is there, and give it its addresses.

    A device that has our name and is no TUN of our owner is removed: its name stands in the rules.

    Raises:
        TunError: it cannot be made; why, in English.
    """
    try:
        found = find_link(names.TUN_NAME)
        if found is not None and not _is_ours(found, uid):
            socket.change(*encode_link_removal(found.index))
            found = None
        if found is None:
            make_tun(uid)
            found = find_link(names.TUN_NAME)
        if found is None:
            raise TunError(f"{names.TUN_NAME} is gone as soon as it is made")
        _set_sysctls()
        await _remove_strange_addresses(socket, found.index)
        refused = socket.add(encode_tun(found.index))
    except OSError as error:
        raise TunError(error.strerror or str(error)) from error
    if refused:
        raise TunError(f"{names.TUN_NAME}: {refused[0]}")
    return Tun(found.index)


async def _remove_strange_addresses(socket: RouteSocket, index: int) -> None:
    wanted = {(names.TUN_IPV4, 24), (names.TUN_IPV6, 64)}
    for address in await list_addresses(index):
        if (address.text, address.prefix) not in wanted:
            socket.change(RTM_DELADDR, address.body)


@dataclass(frozen=True)
class TunTrouble:
    """Why the TUN is not the one that was made. gone: it is another device, or none."""

    detail: str
    gone: bool


async def check_tun(tun: Tun, *, uid: int) -> TunTrouble | None:
    """Look at the TUN; None when all is well.

    Raises:
        OSError: the kernel does not answer.
    """
    found = find_link(names.TUN_NAME)
    if found is None or found.index != tun.index:
        return TunTrouble("the TUN is gone, or another device has its name", gone=True)
    if not _is_ours(found, uid):
        return TunTrouble("the TUN is not ours", gone=True)
    return None if found.flags & IFF_UP else TunTrouble("the TUN is down", gone=False)
