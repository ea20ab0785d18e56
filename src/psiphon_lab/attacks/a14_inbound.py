"""A14: somebody calls from outside, and the kernel answers by itself."""

from __future__ import annotations

import contextlib
import socket
from typing import Any

from psiphon_lab import addresses as plan
from psiphon_lab import craft
from psiphon_lab.addresses import LAN_A, NEIGHBOUR4, NEIGHBOUR6
from psiphon_lab.attacks._send import probe, send_bytes
from psiphon_lab.hands import Shot
from psiphon_lab.leaktest.arena import Arena
from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.terms import Actor, Trace
from psiphon_lab.probe import ICMP, TCP, UDP

SERVICE, CLOSED = 8022, 8023
NEIGHBOUR_MAC = "02:50:53:00:0e:14"


def expired(shot: Shot, *, source: str, target: str) -> None:
    """A packet to be forwarded whose time has run out: a time exceeded would tell that the machine forwards."""
    kind = 8 if shot.family == 4 else 128
    packet = craft.icmp_packet(source, target, kind, bytes(4) + shot.data, hop_limit=1)
    send_bytes("eth0", craft.ip_frame(LAN_A.mac, NEIGHBOUR_MAC, packet))


def unknown(shot: Shot, *, source: str, target: str) -> None:
    """A protocol that the machine does not know: a protocol unreachable would tell."""
    send_bytes("eth0", craft.ip_frame(LAN_A.mac, NEIGHBOUR_MAC, craft.ip_packet(source, target, 253, shot.data)))


def _answers(shot: Shot) -> Trace:
    return Trace(token=shot.data, target_port=shot.source_port)


def _listen(arena: Arena, stack: contextlib.ExitStack) -> None:
    """A service of the machine, on both families, TCP and UDP: sockets are enough, the kernel answers for them."""

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

    arena.client.call(inside)
    arena.say(f"the machine listens on port {SERVICE}")


def run(arena: Arena) -> None:
    """TCP to an open and a closed port, UDP to a closed port, ping, an expired and an unknown packet."""
    _listen(arena, arena.cleanups)
    client = {4: LAN_A.client4, 6: LAN_A.client6}
    source = {4: NEIGHBOUR4, 6: NEIGHBOUR6}
    far = {4: plan.CONTAINER4, 6: plan.CONTAINER6}
    for family in (4, 6):
        for by, where in ((Actor.NEIGHBOUR, "neighbour"), (Actor.PROVIDER, "provider")):
            for kind, port, what in ((TCP, SERVICE, "open"), (TCP, CLOSED, "closed"), (UDP, CLOSED, "closed")):
                arena.fire(probe, by=by, family=family, name=f"{kind} {what} ipv{family} {where}", trace=_answers,
                           kind=kind, target=client[family], port=port)  # fmt: skip
            arena.fire(probe, by=by, family=family, name=f"ping ipv{family} {where}", trace=_answers, kind=ICMP,
                       target=client[family], port=0)  # fmt: skip
        place: dict[str, Any] = {"source": source[family]}
        arena.fire(unknown, by=Actor.NEIGHBOUR, family=family, name=f"unknown protocol ipv{family}", trace=_answers,
                   target=client[family], **place)  # fmt: skip
        arena.fire(expired, by=Actor.NEIGHBOUR, family=family, name=f"expired ipv{family}", trace=_answers,
                   target=far[family], **place)  # fmt: skip


ATTACK = Attack(
    id="A14",
    name="calls from outside",
    reference="answers that the kernel gives by itself: SYN+ACK, RST, ICMP errors, echo replies",
    plain="Somebody in the network calls a service of the computer, a closed port, or pings it. Any answer is traffic "
    "outside the tunnel, and tells that the computer is there.",
    actors=(Actor.NEIGHBOUR, Actor.PROVIDER),
    recognised="answers by the port that was asked from, or by the token that they quote",
    control="the same calls without the lock",
    run=run,
)
