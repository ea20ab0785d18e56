# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""B02: frames of an AF_XDP socket, which bypass the kernel's whole network stack."""

from __future__ import annotations

import ctypes
import errno
import mmap
import socket
import struct
import time
from typing import Any

from psiphon_lab import addresses as plan
from psiphon_lab import packet_builder
from psiphon_lab.addresses import LAN_A
from psiphon_lab.fork_server import Shot
from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.model import Actor
from psiphon_lab.leaktest.trial import Trial
from psiphon_lab.sending import DISCARD

# <linux/if_xdp.h>
AF_XDP, SOL_XDP = 44, 283
XDP_MMAP_OFFSETS, XDP_TX_RING, XDP_UMEM_REG, XDP_UMEM_FILL_RING, XDP_UMEM_COMPLETION_RING = 1, 3, 4, 5, 6
XDP_PGOFF_TX_RING, XDP_COPY = 0x80000000, 2
CHUNK, CHUNKS, ENTRIES = 2048, 4, 4


def _check(result: int, what: str) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), what)


def _bind(libc: Any, sock: socket.socket, address: bytes) -> None:
    """Bind, and wait up to a second: the kernel releases the card's queue some time after the last socket closed."""
    deadline = time.monotonic() + 1.0
    while libc.bind(sock.fileno(), address, len(address)) < 0:
        if ctypes.get_errno() != errno.EBUSY or time.monotonic() > deadline:
            raise OSError(ctypes.get_errno(), "bind")
        time.sleep(0.01)


def by_ring(shot: Shot, *, interface: str, source: str, target: str) -> None:
    """Put a frame into memory that is shared with the driver, and notify the driver."""
    packet = packet_builder.udp_packet(source, target, (shot.source_port, DISCARD), shot.data)
    data = packet_builder.ip_frame(packet_builder.BROADCAST_MAC, LAN_A.mac, packet)
    libc = ctypes.CDLL(None, use_errno=True)
    memory = mmap.mmap(-1, CHUNK * CHUNKS)  # the kernel uses it until the socket is closed; then the process ends
    with socket.socket(AF_XDP, socket.SOCK_RAW, 0) as sock:
        place = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        sock.setsockopt(SOL_XDP, XDP_UMEM_REG, struct.pack("QQIIII", place, CHUNK * CHUNKS, CHUNK, 0, 0, 0))
        for ring in (XDP_UMEM_FILL_RING, XDP_UMEM_COMPLETION_RING, XDP_TX_RING):
            sock.setsockopt(SOL_XDP, ring, struct.pack("i", ENTRIES))
        offsets = struct.unpack("16Q", sock.getsockopt(SOL_XDP, XDP_MMAP_OFFSETS, 128))
        producer, _consumer, descriptors, _flags = offsets[4:8]
        size = descriptors + ENTRIES * 16
        flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
        with mmap.mmap(sock.fileno(), size, flags=flags, offset=XDP_PGOFF_TX_RING) as queue:
            address = struct.pack("HHIII", AF_XDP, XDP_COPY, socket.if_nametoindex(interface), 0, 0)
            _bind(libc, sock, address)
            memory[: len(data)] = data
            struct.pack_into("QII", queue, descriptors, 0, len(data), 0)
            struct.pack_into("I", queue, producer, 1)
            _check(libc.sendto(sock.fileno(), None, 0, socket.MSG_DONTWAIT, None, 0), "sendto")


def run(trial: Trial) -> None:
    """Send one frame of each family."""
    for family in (4, 6):
        source, target = (LAN_A.client4, plan.INTERNET4) if family == 4 else (LAN_A.client6, plan.INTERNET6)
        trial.fire(by_ring, by=Actor.ROOT, family=family, name=f"AF_XDP ipv{family}", interface=LAN_A.interface,
                   source=source, target=target)  # fmt: skip
        trial.settle()  # a card takes one such socket at a time


ATTACK = Attack(
    id="B02",
    name="AF_XDP and similar",
    reference="AF_XDP (kernel documentation, networking/af_xdp.rst); DPDK and VFIO bypass even more",
    summary="A program with root's rights shares memory with the network card's driver and hands it frames directly, "
    "past every rule of the kernel.",
    actors=(Actor.ROOT,),
    recognised="by source port or a token in the payload",
    control="the same frames without the lock",
    run=run,
    out_of_reach="it takes root, and such frames pass no hook of the kernel; only a kernel without AF_XDP would help",
)
