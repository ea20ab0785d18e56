# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A14: packets from outside, which the kernel answers by itself."""

from __future__ import annotations

import contextlib
import socket
from typing import Any

from psiphon_lab import addresses as plan
from psiphon_lab import packet_builder
from psiphon_lab.addresses import LAN_A, NEIGHBOUR4, NEIGHBOUR6
from psiphon_lab.fork_server import Shot
from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.model import Actor, Trace
from psiphon_lab.leaktest.trial import Trial
from psiphon_lab.probe import ICMP, TCP, UDP
from psiphon_lab.sending import probe, send_bytes

SOCKETS_ONLY = True  # see fork_server

SERVICE, CLOSED = 8022, 8023
NEIGHBOUR_MAC = "02:50:53:00:0e:14"


def expired(shot: Shot, *, source: str, target: str) -> None:
    """A packet to forward, with an expired hop limit: a "time exceeded" would show that the machine forwards."""
    kind = 8 if shot.family == 4 else 128
    packet = packet_builder.icmp_packet(source, target, kind, bytes(4) + shot.data, hop_limit=1)
    send_bytes("eth0", packet_builder.ip_frame(LAN_A.mac, NEIGHBOUR_MAC, packet))


def unknown(shot: Shot, *, source: str, target: str) -> None:
    """A protocol that the machine does not know: a "protocol unreachable" would give the machine away."""
    send_bytes(
        "eth0",
        packet_builder.ip_frame(LAN_A.mac, NEIGHBOUR_MAC, packet_builder.ip_packet(source, target, 253, shot.data)),
    )


def _answers(shot: Shot) -> Trace:
    return Trace(token=shot.data, target_port=shot.source_port)


def _listen(trial: Trial, stack: contextlib.ExitStack) -> None:
    """Open a service on the machine, both families, TCP and UDP. Sockets are enough: the kernel answers for them."""

    def inside() -> None:
        for family in (socket.AF_INET, socket.AF_INET6):
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                sock = stack.enter_context(socket.socket(family, kind))
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.bind(("", SERVICE))
                if kind == socket.SOCK_STREAM:
                    sock.listen(64)

    trial.client.call(inside)
    trial.say(f"the machine listens on port {SERVICE}")


def run(trial: Trial) -> None:
    """TCP to an open and a closed port, UDP to a closed port, ping, an expired packet, an unknown protocol."""
    _listen(trial, trial.cleanups)
    client = {4: LAN_A.client4, 6: LAN_A.client6}
    source = {4: NEIGHBOUR4, 6: NEIGHBOUR6}
    far = {4: plan.CONTAINER4, 6: plan.CONTAINER6}
    for family in (4, 6):
        for by, where in ((Actor.NEIGHBOUR, "neighbour"), (Actor.PROVIDER, "provider")):
            for kind, port, port_state in ((TCP, SERVICE, "open"), (TCP, CLOSED, "closed"), (UDP, CLOSED, "closed")):
                trial.fire(probe, by=by, family=family, name=f"{kind} {port_state} ipv{family} {where}", trace=_answers,
                           kind=kind, target=client[family], port=port)  # fmt: skip
            trial.fire(probe, by=by, family=family, name=f"ping ipv{family} {where}", trace=_answers, kind=ICMP,
                       target=client[family], port=0)  # fmt: skip
        place: dict[str, Any] = {"source": source[family]}
        trial.fire(unknown, by=Actor.NEIGHBOUR, family=family, name=f"unknown protocol ipv{family}", trace=_answers,
                   target=client[family], **place)  # fmt: skip
        trial.fire(expired, by=Actor.NEIGHBOUR, family=family, name=f"expired ipv{family}", trace=_answers,
                   target=far[family], **place)  # fmt: skip


ATTACK = Attack(
    id="A14",
    name="packets from outside",
    reference="answers that the kernel gives by itself: SYN+ACK, RST, ICMP errors, echo replies",
    summary="Somebody on the network connects to a service of the computer or to a closed port, or pings it. Any "
    "answer is traffic outside the tunnel, and shows that the computer is there.",
    actors=(Actor.NEIGHBOUR, Actor.PROVIDER),
    recognised="by the port that the packet came from, or the token that the answer quotes",
    control="the same packets without the lock",
    run=run,
)
