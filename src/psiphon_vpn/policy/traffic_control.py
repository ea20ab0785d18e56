# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The filter at a card's own traffic control: what it drops, as a program of classic BPF. Pure.

Traffic control can move a frame onto a card past every netfilter hook (tc-mirred(8), `bpf_redirect`): the moved frame
skips the egress hook (net/core/dev.c, `nf_skip_egress`). It does not skip the card's own traffic control, which comes
after that hook (net/core/dev.c, `__dev_queue_xmit`: `nf_hook_egress`, then `sch_handle_egress`). So a filter there
drops frames without the bit that the egress guard and the frame guard set on what they accept (`names.ACCEPTED_BIT`).

The bit is never a reason to accept a frame: with it, the frame goes on to the filters that follow.
"""

import enum
import ipaddress
import struct
from typing import Final

from psiphon_vpn.policy import names

Instruction = tuple[int, int, int, int]
"""One of BPF (struct sock_filter of linux/filter.h): code, instructions to skip if true, if false, operand."""

GO_ON, DROP = 0xFFFFFFFF, 2
"""TC_ACT_UNSPEC, which goes on to the filters that follow, and TC_ACT_SHOT (linux/pkt_cls.h)."""
# Of linux/bpf_common.h: loads of a word, half a word and a byte; and; comparisons with a constant; return.
_LOAD, _LOAD_HALF, _LOAD_BYTE, _AND, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x28, 0x30, 0x54, 0x15, 0x45, 0x06
_PROTOCOL, _MARK, _NETWORK = 0xFFFFF000, 0xFFFFF014, 0xFFF00000
"""SKF_AD_OFF + SKF_AD_PROTOCOL, SKF_AD_OFF + SKF_AD_MARK, SKF_NET_OFF of linux/filter.h. The last is the start of the
network header, so one program reads frames with and without a link-layer header."""
_IPV4, _IPV6 = 0x0800, 0x86DD
_TAGS: Final = (0x8100, 0x88A8)
_TAG_BYTES: Final = 4
ASK_NOTHING: Final[tuple[Instruction, ...]] = ((_RETURN, 0, 0, GO_ON),)
"""A program that lets every frame go on."""
_LOOPBACK: Final = ("127.0.0.0/8", "::1/128")


class Filter(enum.StrEnum):
    """What a card's filter checks."""

    MARKED = "marked"
    """The bit of our guards, and the source. Only where a guard is loaded that sets it, or nothing would leave."""
    SOURCES = "sources"
    """The source alone: it must belong neither to the tunnel nor to loopback."""


def build_program(wanted: Filter) -> tuple[Instruction, ...]:
    """The program of a filter. It returns GO_ON or DROP, after 6 to 33 instructions for each frame.

    A load beyond the end of a frame ends the program with 0, which is TC_ACT_OK. So it checks the mark first, which
    needs no load from the frame.
    """
    steps: list[Instruction] = []
    if wanted is Filter.MARKED:
        steps += [(_LOAD, 0, 0, _MARK), (_ANY_BIT, 1, 0, names.ACCEPTED_BIT), (_RETURN, 0, 0, DROP)]
    steps += [(_LOAD, 0, 0, _PROTOCOL), *_if_equal(_IPV4, _drop_sources(4, 0)), *_if_equal(_IPV6, _drop_sources(6, 0))]
    # A VLAN tag inside the frame: the network header begins at the tag itself, or after it.
    steps += [(_EQUAL, 2, 0, _TAGS[0]), (_EQUAL, 1, 0, _TAGS[1]), (_RETURN, 0, 0, GO_ON)]
    steps += [(_LOAD_HALF, 0, 0, _NETWORK + 2)]
    steps += _if_equal(_IPV4, _drop_sources(4, _TAG_BYTES)) + _if_equal(_IPV6, _drop_sources(6, _TAG_BYTES))
    steps += [(_LOAD_BYTE, 0, 0, _NETWORK), (_AND, 0, 0, 0xF0)]
    steps += _if_equal(0x40, _drop_sources(4, 0)) + _if_equal(0x60, _drop_sources(6, 0))
    return (*steps, (_RETURN, 0, 0, GO_ON))


def encode_program(program: tuple[Instruction, ...]) -> bytes:
    """The program as the kernel takes and lists it."""
    return b"".join(struct.pack("=HBBI", *step) for step in program)


def _if_equal(value: int, then: list[Instruction]) -> list[Instruction]:
    """Run the given instructions, which end in a return, if the loaded value equals this one; else skip them."""
    return [(_EQUAL, 0, len(then), value), *then]


def _drop_sources(version: int, offset: int) -> list[Instruction]:
    """Drop a packet from an address of the tunnel or loopback; let others go on. offset: of its IP header, bytes."""
    place = _NETWORK + offset + (12 if version == 4 else 8)
    own = names.TUN_IPV4_SUBNET if version == 4 else names.TUN_IPV6_SUBNET
    steps: list[Instruction] = []
    for text in (own, *_LOOPBACK):
        network = ipaddress.ip_network(text)
        if network.version == version:
            steps += _drop_network(place, network)
    return [*steps, (_RETURN, 0, 0, GO_ON)]


def _drop_network(place: int, network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> list[Instruction]:
    address, mask = network.network_address.packed, network.netmask.packed
    words = [
        (place + at, *(int.from_bytes(value[at : at + 4]) for value in (mask, address)))
        for at in range(0, len(address), 4)
    ]
    asked = [(where, bits, value) for where, bits, value in words if bits]
    steps: list[Instruction] = [(_RETURN, 0, 0, DROP)]
    for where, bits, value in reversed(asked):
        steps = [(_LOAD, 0, 0, where), (_AND, 0, 0, bits), (_EQUAL, 0, len(steps), value), *steps]
    return steps
