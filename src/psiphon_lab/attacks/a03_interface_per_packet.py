# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A03: a program chooses the interface for each packet."""

from __future__ import annotations

import ipaddress
import socket
import struct
from typing import Any

from psiphon_lab.fork_server import Shot
from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.model import Actor
from psiphon_lab.leaktest.trial import Trial
from psiphon_lab.probe import TARGETS
from psiphon_lab.sending import BOTH, ECHO, send_datagram

SOCKETS_ONLY = True  # see fork_server

IP_PKTINFO, IP_UNICAST_IF, IPV6_UNICAST_IF = 8, 50, 76  # <linux/in.h>, <linux/in6.h>
GROUP = {4: "239.255.77.77", 6: "ff05::7777"}
ALL_NODES = "ff02::1"


def _open(shot: Shot) -> socket.socket:
    sock = socket.socket(socket.AF_INET if shot.family == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("", shot.source_port))
    return sock


def unicast_interface(shot: Shot, *, target: str, interface: str) -> None:
    """Send with IP_UNICAST_IF or IPV6_UNICAST_IF: a socket option that any user may set."""
    with _open(shot) as sock:
        level, option = (
            (socket.IPPROTO_IP, IP_UNICAST_IF) if shot.family == 4 else (socket.IPPROTO_IPV6, IPV6_UNICAST_IF)
        )
        sock.setsockopt(level, option, struct.pack("!I", socket.if_nametoindex(interface)))
        sock.sendto(shot.data, (target, ECHO))


def packet_info(shot: Shot, *, target: str, interface: str, source: str) -> None:
    """Send with IP_PKTINFO or IPV6_PKTINFO: interface and source for each packet."""
    index, packed = socket.if_nametoindex(interface), ipaddress.ip_address(source).packed
    if shot.family == 4:
        item = (socket.IPPROTO_IP, IP_PKTINFO, struct.pack("=I4s4s", index, packed, bytes(4)))
    else:
        item = (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, struct.pack("=16sI", packed, index))
    with _open(shot) as sock:
        sock.sendmsg([shot.data], [item], 0, (target, ECHO))


def scope(shot: Shot, *, target: str, interface: str) -> None:
    """Send with sin6_scope_id: the interface as part of the address."""
    with _open(shot) as sock:
        sock.sendto(shot.data, (target, ECHO, 0, socket.if_nametoindex(interface)))


def run(trial: Trial) -> None:
    """Choose the interface in every way that there is, as root and as a user."""
    for lan in trial.lans:
        for by in BOTH:
            for family in (4, 6):
                target, source = TARGETS["internet"][family], lan.client4 if family == 4 else lan.client6
                end = f"ipv{family} {lan.interface} {by}"
                wire: dict[str, Any] = {"interface": lan.interface}
                trial.fire(unicast_interface, by=by, family=family, name=f"UNICAST_IF {end}", target=target, **wire)
                trial.fire(
                    packet_info, by=by, family=family, name=f"PKTINFO {end}", target=target, source=source, **wire
                )
                trial.fire(
                    send_datagram, by=by, family=family, name=f"MULTICAST_IF {end}", target=GROUP[family], port=ECHO,
                    group=True, **wire,
                )  # fmt: skip
            trial.fire(scope, by=by, family=6, name=f"scope id {lan.interface} {by}", target=ALL_NODES,
                       interface=lan.interface)  # fmt: skip


ATTACK = Attack(
    id="A03",
    name="interface chosen per packet",
    reference="IP_UNICAST_IF, IP_PKTINFO, IPV6_PKTINFO, sin6_scope_id, IP_MULTICAST_IF (ip(7), ipv6(7))",
    summary="A program chooses the network card for each packet. There are five ways, and every user may use them.",
    actors=(Actor.ROOT, Actor.USER),
    recognised="by source port or a token in the payload",
    control="the same packets without the lock",
    run=run,
)
