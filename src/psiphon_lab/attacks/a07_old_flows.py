# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A07: connections from before the lock."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import socket
from collections.abc import Callable
from dataclasses import dataclass

from psiphon_lab import addresses as plan
from psiphon_lab.fork_server import Shot
from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.model import Actor, Mode, Trace
from psiphon_lab.leaktest.trial import Trial
from psiphon_lab.probe import FIRST_PORT, PORTS
from psiphon_lab.probe_runner import NOBODY
from psiphon_lab.sending import ECHO

KEEPALIVE_SECONDS = 1
SYS_SETFSUID = 122  # x86-64; on other processors all flows are root's

# No other shot uses them, and the kernel gives a core none of them. Where a machine plays several states, connections
# of an earlier one may still be closing.
_ports = itertools.cycle(range(FIRST_PORT + PORTS, FIRST_PORT + PORTS + 800))


@dataclass
class Flow:
    """A connection that was open before the lock."""

    kind: str
    family: int
    by: Actor
    sock: socket.socket
    port: int


def _connect(kind: str, family: int, port: int) -> socket.socket:
    version, target = (socket.AF_INET, plan.INTERNET4) if family == 4 else (socket.AF_INET6, plan.INTERNET6)
    sock = socket.socket(version, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
    sock.settimeout(3)
    sock.bind(("", port))
    sock.connect((target, ECHO))
    sock.send(b"before")
    if sock.recv(100) != b"before":
        raise OSError("no echo before the lock")
    if kind == "tcp":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL):
            sock.setsockopt(socket.IPPROTO_TCP, option, KEEPALIVE_SECONDS)
    sock.setblocking(False)
    return sock


def open_flows(trial: Trial) -> list[Flow]:
    """Open TCP and UDP flows of root and of a user, both families, in this process, which runs throughout."""
    flows: list[Flow] = []

    def inside() -> None:
        for by in (Actor.ROOT, Actor.USER):
            if by is Actor.USER:
                # The bare system call changes only this thread; the C library would change the whole process.
                ctypes.CDLL(None).syscall(SYS_SETFSUID, NOBODY)
            for kind in ("tcp", "udp"):
                for family in (4, 6):
                    port = next(_ports)
                    flows.append(Flow(kind, family, by, _connect(kind, family, port), port))

    trial.client.call(inside)
    return flows


def _sent_from(port: int) -> Callable[[Shot], Trace]:
    return lambda shot: Trace(token=shot.data, source_port=port)


def run(trial: Trial) -> None:
    """Send more data, and let the kernel send by itself (keepalives, retransmissions, the end of a connection)."""
    flows: list[Flow] = trial.begun or []
    data: dict[int, bytes] = {}
    for number, flow in enumerate(flows):
        shot = trial.note_shot(
            by=flow.by, name=f"{flow.kind} ipv{flow.family} {flow.by}", family=flow.family,
            trace=_sent_from(flow.port),
        )  # fmt: skip
        data[number] = shot.data
    for _ in range(8 if trial.churn else 3):
        for number, flow in enumerate(flows):
            with contextlib.suppress(OSError):
                flow.sock.send(data[number] + b" after the lock")
        trial.wait(0.1)
    trial.wait(KEEPALIVE_SECONDS + 0.2 if trial.mode in {Mode.BOOT, Mode.OPEN} else 0.1)
    for flow in flows:
        with contextlib.suppress(OSError):
            flow.sock.shutdown(socket.SHUT_RDWR)
        flow.sock.close()
    trial.wait(0.1)


ATTACK = Attack(
    id="A07",
    name="earlier connections",
    reference='the 2020 iOS "VPN bypass": earlier connections stayed outside',
    summary="A download, a chat or a call was running when the machine was locked. It keeps sending, or the system "
    "sends something to keep the connection alive.",
    actors=(Actor.ROOT, Actor.USER),
    recognised="by the connection's source port or a token in the payload",
    control="the same connections without the lock",
    run=run,
    before_lock=open_flows,
)
