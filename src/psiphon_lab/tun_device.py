# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Attaches to a TUN interface (the kernel's Documentation/networking/tuntap.rst). Standard library only."""

from __future__ import annotations

import fcntl
import os
import struct

TUNSETIFF = 0x400454CA
TUNSETPERSIST = 0x400454CB
TUNSETOWNER = 0x400454CC
IFF_TUN = 0x0001
IFF_NO_PI = 0x1000


def attach_tun(name: str) -> int:
    """A non-blocking descriptor of TUN interface `name`: single queue, no packet information header.

    Attaches to the interface if it exists and this uid owns it; otherwise creates it (needs CAP_NET_ADMIN).
    Raises OSError.
    """
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    except OSError:
        os.close(fd)
        raise
    return fd


def make_persistent_tun(name: str, *, owner: int) -> None:
    """Create a TUN interface that stays while no process has it open, and to which uid `owner` may attach."""
    fd = attach_tun(name)
    try:
        fcntl.ioctl(fd, TUNSETOWNER, owner)
        fcntl.ioctl(fd, TUNSETPERSIST, 1)
    finally:
        os.close(fd)
