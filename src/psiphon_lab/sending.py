# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Shots that several attacks use. Each function makes one shot; `volley` fires those that show a route out."""

from __future__ import annotations

import socket
import struct
import time

from psiphon_lab import addresses as plan
from psiphon_lab import packet_builder
from psiphon_lab.addresses import LAN_A
from psiphon_lab.fork_server import Shot
from psiphon_lab.leaktest.model import EGRESS, Actor
from psiphon_lab.leaktest.trial import Trial
from psiphon_lab.probe import PROBES, SO_BINDTODEVICE, TARGETS, TCP, UDP, ProbeSpec

SOCKETS_ONLY = True  # see fork_server
LIMIT = 0.2
"""How long a shot waits for an answer, seconds. Only what it sends matters."""
ECHO, DISCARD, WEB = 7, 9, 80
BOTH = (Actor.ROOT, Actor.USER)


def probe(shot: Shot, *, kind: str, target: str, port: int, interface: str = "") -> str | None:
    """Make one of the laboratory's probes (`probe.py`)."""
    spec = ProbeSpec(
        id=shot.name,
        kind=kind,
        family=shot.family,
        where="",
        target=target,
        port=port,
        interface=interface,
        source_port=shot.source_port,
        token=shot.token,
    )
    return PROBES[kind](spec, time.monotonic() + LIMIT)


def send_datagram(
    shot: Shot, *, target: str, port: int, interface: str = "", group: bool = False, broadcast: bool = False
) -> None:
    """Send a UDP datagram with the token. group: unbound, with `interface` as the multicast interface."""
    family = socket.AF_INET if shot.family == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        if group and family == socket.AF_INET:
            index = socket.if_nametoindex(interface)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, struct.pack("4s4si", bytes(4), bytes(4), index))
        elif group:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, socket.if_nametoindex(interface))
        elif interface:
            sock.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, interface.encode() + b"\0")
        if broadcast:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("", shot.source_port))
        sock.sendto(shot.data, (target, port))


def send_frame(
    shot: Shot, *, interface: str, mac: str, source: str, target: str, router_mac: str = "", bypass: bool = False
) -> None:
    """Send a UDP packet in a frame by a packet socket. bypass: past the queueing layer (PACKET_QDISC_BYPASS)."""
    packet = packet_builder.udp_packet(source, target, (shot.source_port, DISCARD), shot.data)
    send_bytes(
        interface, packet_builder.ip_frame(router_mac or packet_builder.BROADCAST_MAC, mac, packet), bypass=bypass
    )


def send_bytes(interface: str, data: bytes, *, protocol: int | None = None, bypass: bool = False) -> None:
    """Send any bytes as a frame. protocol: the protocol to give the kernel; by default the frame's own."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        if bypass:
            sock.setsockopt(263, 20, 1)  # SOL_PACKET, PACKET_QDISC_BYPASS
        sock.sendto(data, (interface, int.from_bytes(data[12:14], "big") if protocol is None else protocol))


def volley(trial: Trial, label: str, *, seconds: float = 0.0, raw: bool = False, bound: bool = True) -> None:
    """Fire what an open route out would carry: UDP and TCP to the internet, unbound and bound, as root and as a user.

    label: the beginning of the shots' names. raw: raw frames too. bound: shots that are bound to a wire too.
    """
    for family in trial.families:
        for by in BOTH:
            for kind, port in ((UDP, ECHO), (TCP, WEB)):
                ways = ["", *(lan.interface for lan in trial.lans)] if bound else [""]
                for interface in ways:
                    trial.fire(
                        probe,
                        by=by,
                        family=family,
                        seconds=seconds,
                        name=f"{label} {kind} ipv{family} {interface or 'plain'} {by}",
                        kind=kind,
                        target=TARGETS["internet"][family],
                        port=port,
                        interface=interface,
                    )
        if raw:
            for lan in trial.lans:
                fire_frame(trial, f"{label} frame ipv{family} {lan.interface}", family, lan.interface, seconds=seconds)


def fire_frame(
    trial: Trial, name: str, family: int, interface: str, *, seconds: float = 0.0, bypass: bool = False
) -> None:
    """Fire a raw frame of root to the internet, broadcast on the link so that any router accepts it."""
    source, target = (LAN_A.client4, plan.INTERNET4) if family == 4 else (LAN_A.client6, plan.INTERNET6)
    trial.fire(
        send_frame,
        by=Actor.ROOT,
        family=family,
        name=name,
        seconds=seconds,
        needs=EGRESS,
        interface=interface,
        mac=LAN_A.mac,
        source=source,
        target=target,
        bypass=bypass,
    )


def restore_uplink(trial: Trial) -> None:
    """Restore addresses and routes once the first network's carrier is back, as a network manager would."""
    wire = LAN_A.interface
    trial.client.run(["ip", "-6", "addr", "replace", f"{LAN_A.client6}/{LAN_A.prefix6}", "dev", wire, "nodad"])
    for family, router in (("-4", LAN_A.router4), ("-6", LAN_A.router6)):
        trial.client.run(["ip", family, "route", "replace", "default", "via", router, "dev", wire, "metric", "100"])
