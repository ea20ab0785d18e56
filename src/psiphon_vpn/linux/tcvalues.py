# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""rtnetlink's messages on traffic control, as values, and our filter as requests (linux/rtnetlink.h, pkt_cls.h)."""

import socket
import struct
import sys
from dataclasses import dataclass

from psiphon_vpn.linux.netlink import read_attributes, write_attribute
from psiphon_vpn.linux.rtvalues import read_name

RTM_NEWQDISC, RTM_DELQDISC, RTM_GETQDISC = 36, 37, 38
RTM_NEWTFILTER, RTM_DELTFILTER, RTM_GETTFILTER = 44, 45, 46
TCMSG = struct.Struct("=BxxxiIII")
"""struct tcmsg: family, index of the interface, handle, parent, and preference and protocol in one."""
CLSACT_PARENT, CLSACT_HANDLE = 0xFFFFFFF1, 0xFFFF0000
INGRESS, EGRESS = 0xFFFFFFF2, 0xFFFFFFF3
"""Parents of filters: TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS) and the same with TC_H_MIN_EGRESS."""
EVERY_PROTOCOL = socket.htons(0x0003)
"""ETH_P_ALL, in network byte order as the kernel has it."""
CLSACT = "clsact"
BPF = "bpf"
_KIND, _OPTIONS, _CHAIN = 1, 2, 11
_OPS_LEN, _OPS, _FLAGS, _DIRECT = 4, 5, 8, 1
"""TCA_BPF_*; TCA_BPF_FLAG_ACT_DIRECT: the program returns the verdict itself, so no action module is needed."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """A queueing discipline at `ffff:`: `clsact`, which takes filters in both directions, or `ingress`."""

    index: int
    kind: str


@dataclass(frozen=True, kw_only=True)
class Discipline:
    """A queueing discipline of any kind. handle: its number; 0 if the kernel made it by itself."""

    index: int
    handle: int
    parent: int
    kind: str


@dataclass(frozen=True, kw_only=True)
class TcFilter:
    """A filter of an interface, in the order in which the kernel runs them.

    Attributes:
        parent: INGRESS or EGRESS.
        preference: the lowest comes first.
        protocol: in network byte order.
        handle: 0 for the head of a list of filters with one preference, which is not a filter.
        chain: 0 for filters that every frame meets; other chains run only if one of these jumps there.
        program: in classic BPF; None for another kind of filter.
        direct: it returns the verdict itself.
    """

    index: int
    parent: int
    preference: int
    protocol: int
    kind: str
    handle: int
    chain: int = 0
    program: bytes | None = None
    direct: bool = False


def decode_discipline(kind: int, body: bytes) -> Discipline | None:
    """A queueing discipline; None of anything else. Never raises, whatever the bytes."""
    if kind != RTM_NEWQDISC or len(body) < TCMSG.size:
        return None
    _, index, handle, parent, _ = TCMSG.unpack_from(body)
    name = read_name(read_attributes(body[TCMSG.size :]).get(_KIND, b""))
    return Discipline(index=index, handle=handle, parent=parent, kind=name)


def decode_place(kind: int, body: bytes) -> Place | None:
    """What stands at `ffff:` of an interface; None of any other queueing discipline. Never raises."""
    found = decode_discipline(kind, body)
    return Place(index=found.index, kind=found.kind) if found is not None and found.handle == CLSACT_HANDLE else None


def decode_filter(kind: int, body: bytes) -> TcFilter | None:
    """A filter; None of anything else. Never raises, whatever the bytes."""
    if kind != RTM_NEWTFILTER or len(body) < TCMSG.size:
        return None
    _, index, handle, parent, info = TCMSG.unpack_from(body)
    attributes = read_attributes(body[TCMSG.size :])
    options = read_attributes(attributes.get(_OPTIONS, b""))
    return TcFilter(
        index=index,
        parent=parent,
        preference=info >> 16,
        protocol=info & 0xFFFF,
        kind=read_name(attributes.get(_KIND, b"")),
        handle=handle,
        chain=int.from_bytes(attributes.get(_CHAIN, b""), sys.byteorder),
        program=options.get(_OPS),
        direct=bool(int.from_bytes(options.get(_FLAGS, b""), sys.byteorder) & _DIRECT),
    )


def encode_place(index: int) -> bytes:
    """`clsact` at an interface; the same to make it and to take it away."""
    return TCMSG.pack(0, index, CLSACT_HANDLE, CLSACT_PARENT, 0) + write_attribute(_KIND, b"clsact\0")


def encode_filter(index: int, handle: int, preference: int, program: bytes) -> bytes:
    """A filter of classic BPF on an interface's way out, for every protocol.

    Args:
        index: of the interface.
        handle: the number that identifies it.
        preference: its place among others.
        program: the instructions.
    """
    options = write_attribute(_OPS_LEN, struct.pack("=H", len(program) // 8)) + write_attribute(_OPS, program)
    options += write_attribute(_FLAGS, struct.pack("=I", _DIRECT))
    head = TCMSG.pack(0, index, handle, EGRESS, preference << 16 | EVERY_PROTOCOL)
    return head + write_attribute(_KIND, b"bpf\0") + write_attribute(_OPTIONS, options)


def encode_filter_removal(found: TcFilter) -> bytes:
    """The removal of this filter only."""
    head = TCMSG.pack(0, found.index, found.handle, found.parent, found.preference << 16 | found.protocol)
    return head + write_attribute(_KIND, found.kind.encode() + b"\0")
