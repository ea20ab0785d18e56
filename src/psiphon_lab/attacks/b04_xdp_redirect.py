# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""B04: an XDP program redirects a container's frames to the card."""

from __future__ import annotations

import ctypes
import os
import platform
import socket
import struct

from psiphon_lab import addresses as plan
from psiphon_lab.addresses import LAN_A
from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.model import Actor
from psiphon_lab.leaktest.trial import Trial
from psiphon_lab.namespace import LabError
from psiphon_lab.probe import TARGETS
from psiphon_lab.sending import send_frame

CAME = "ctr0"
SYS_BPF = {"x86_64": 321, "aarch64": 280}
BPF_PROG_LOAD, BPF_PROG_TYPE_XDP, BPF_LINK_CREATE, BPF_XDP, GENERIC = 5, 6, 28, 37, 2  # <linux/bpf.h>
ATTRIBUTES = 128  # bytes; union bpf_attr, the rest is zero


def _bpf(command: int, attributes: bytes) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    room = ctypes.create_string_buffer(attributes.ljust(ATTRIBUTES, b"\0"), ATTRIBUTES)
    result: int = libc.syscall(SYS_BPF[platform.machine()], command, room, ATTRIBUTES)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"bpf({command})")
    return result


def _step(code: int, register: int, value: int) -> bytes:
    return struct.pack("=BBhi", code, register, 0, value)


def redirect(came: str, out: str) -> int:
    """Have what comes by an interface leave by another, until the returned descriptor is closed. Raises OSError.

    The program: r1 = index, r2 = 0, call bpf_redirect (helper 23), exit.
    """
    program = _step(0xB7, 1, socket.if_nametoindex(out)) + _step(0xB7, 2, 0) + _step(0x85, 0, 23) + _step(0x95, 0, 0)
    kept = ctypes.create_string_buffer(program, len(program)), ctypes.create_string_buffer(b"GPL")
    where = [ctypes.addressof(each) for each in kept]
    loaded = _bpf(BPF_PROG_LOAD, struct.pack("=IIQQ", BPF_PROG_TYPE_XDP, len(program) // 8, *where))
    try:
        return _bpf(BPF_LINK_CREATE, struct.pack("=IIII", loaded, socket.if_nametoindex(came), BPF_XDP, GENERIC))
    finally:
        os.close(loaded)


def run(trial: Trial) -> None:
    """Send by a container whose frames are redirected before this machine's network stack sees them."""
    try:
        link = trial.client.call(lambda: redirect(CAME, LAN_A.interface))
    except (OSError, KeyError) as error:
        raise LabError(f"no XDP program can be loaded here: {error}") from error
    trial.say(f"an XDP program at {CAME} redirects everything to {LAN_A.interface}")
    trial.cleanups.callback(os.close, link)
    for family in (4, 6):
        source = plan.CONTAINER4 if family == 4 else plan.CONTAINER6
        trial.fire(send_frame, by=Actor.CONTAINER, family=family, name=f"redirected ipv{family}", interface="eth0",
                   mac="02:50:53:00:0c:02", source=source, target=TARGETS["internet"][family])  # fmt: skip
    trial.settle()


ATTACK = Attack(
    id="B04",
    name="redirected by an XDP program",
    reference="bpf_redirect in an XDP program (bpf-helpers(7)): the frame goes from one driver to another",
    summary="A program of root attaches an XDP program to a container's interface that sends every frame straight to "
    "the network card's driver, past every rule of the kernel and past traffic control.",
    actors=(Actor.CONTAINER,),
    recognised="by source port or a token in the payload",
    control="the same frames without the lock",
    run=run,
    out_of_reach="it takes root, and such frames meet no hook of the kernel on the way out",
)
