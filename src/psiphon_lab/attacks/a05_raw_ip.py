# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A05: raw IP packets with a chosen source, and rare protocols."""

from __future__ import annotations

import socket

from psiphon_lab import packet_builder
from psiphon_lab.addresses import LAN_A, NEIGHBOUR4, NEIGHBOUR6
from psiphon_lab.fork_server import Shot
from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.model import Actor
from psiphon_lab.leaktest.trial import Trial
from psiphon_lab.probe import SO_BINDTODEVICE, TARGETS
from psiphon_lab.sending import DISCARD
from psiphon_lab.service_adapter import names

SOCKETS_ONLY = True  # see fork_server

IPV6_HDRINCL = 36  # <linux/in6.h>
PROTOCOLS = {"IPIP": 4, "6in4": 41, "GRE": 47, "ESP": 50, "AH": 51, "SCTP": 132, "UDP-Lite": 136}


def _family(shot: Shot) -> socket.AddressFamily:
    return socket.AF_INET if shot.family == 4 else socket.AF_INET6


def protocol(shot: Shot, *, number: int, target: str, interface: str) -> None:
    """Send a packet of a protocol; the kernel makes its header."""
    with socket.socket(_family(shot), socket.SOCK_RAW, number) as sock:
        if interface:
            sock.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, interface.encode() + b"\0")
        ports = shot.source_port.to_bytes(2, "big") + DISCARD.to_bytes(2, "big")
        sock.sendto(ports + bytes(8) + shot.data, (target, 0))


def chosen_source(shot: Shot, *, source: str, target: str, interface: str, number: int = packet_builder.UDP) -> None:
    """Send a packet with a header, and so a source, of the program's own. number: the protocol."""
    if number == packet_builder.UDP:
        packet = packet_builder.udp_packet(source, target, (shot.source_port, DISCARD), shot.data)
    else:
        packet = packet_builder.ip_packet(source, target, number, shot.data)
    with socket.socket(_family(shot), socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
        if shot.family == 6:
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_HDRINCL, 1)
        if interface:
            sock.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, interface.encode() + b"\0")
        sock.sendto(packet, (target, 0))


def run(trial: Trial) -> None:
    """Send eight protocols and three sources, unbound and bound."""
    sources = {
        4: {"own": LAN_A.client4, "neighbour's": NEIGHBOUR4, "tunnel's": names.TUN_IPV4},
        6: {"own": LAN_A.client6, "neighbour's": NEIGHBOUR6, "tunnel's": names.TUN_IPV6},
    }
    for family in (4, 6):
        target = TARGETS["internet"][family]
        for interface in ("", *(lan.interface for lan in trial.lans)):
            end = f"ipv{family} {interface or 'plain'}"
            for name, number in PROTOCOLS.items():
                trial.fire(protocol, by=Actor.ROOT, family=family, name=f"{name} {end}", number=number, target=target,
                           interface=interface)  # fmt: skip
            for name, source in sources[family].items():
                trial.fire(chosen_source, by=Actor.ROOT, family=family, name=f"{name} source {end}", source=source,
                           target=target, interface=interface)  # fmt: skip
            trial.fire(chosen_source, by=Actor.ROOT, family=family, name=f"protocol 255 {end}",
                       source=sources[family]["own"], target=target, interface=interface, number=255)  # fmt: skip


ATTACK = Attack(
    id="A05",
    name="raw IP, other protocols",
    reference="raw(7); rules that name TCP, UDP and ICMP only",
    summary="A program with root's rights builds its own IP packets: with another sender's address, or of protocols "
    "that rules tend to forget (GRE, ESP, SCTP and others).",
    actors=(Actor.ROOT,),
    recognised="by source port or a token in the payload",
    control="the same packets without the lock",
    run=run,
)
