# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A21: another device on the LAN uses the core's proxy."""

from __future__ import annotations

import contextlib
import socket

from psiphon_lab import packet_builder
from psiphon_lab.addresses import LAN_A, NEIGHBOUR4, NEIGHBOUR6
from psiphon_lab.fork_server import Shot
from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.model import Actor, Mode, Trace
from psiphon_lab.leaktest.trial import Trial
from psiphon_lab.probe import TCP
from psiphon_lab.sending import probe, send_bytes

SOCKETS_ONLY = True  # see fork_server

SOCKS, HTTP = 1081, 8081
NEIGHBOUR_MAC = "02:50:53:00:0e:14"
LOOPBACK = {4: "127.0.0.1", 6: "::1"}


def to_loopback(shot: Shot, *, port: int, source: str) -> None:
    """Send a segment for 127.0.0.1 or ::1 over the wire, which route_localnet would accept."""
    packet = packet_builder.tcp_packet(source, LOOPBACK[shot.family], (shot.source_port, port), packet_builder.SYN)
    send_bytes("eth0", packet_builder.ip_frame(LAN_A.mac, NEIGHBOUR_MAC, packet))


def _answers(shot: Shot) -> Trace:
    return Trace(token=shot.data, target_port=shot.source_port)


def _listen_carelessly(trial: Trial, stack: contextlib.ExitStack) -> None:
    """Listen on every address, as a careless proxy does: in the control there is no core."""

    def inside() -> None:
        for port in (SOCKS, HTTP):
            sock = stack.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_STREAM))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.bind(("::", port))
            sock.listen(16)

    trial.client.call(inside)
    trial.client.set_sysctls({"ipv4/conf/all/route_localnet": 1})
    trial.say("a proxy that listens on every address")


def run(trial: Trial) -> None:
    """Connect from the neighbour and the provider to the proxy's ports, and to loopback addresses over the wire."""
    link = trial.testbed.world.neighbour.run(["cat", "/sys/class/net/eth0/address"]).stdout.strip()
    # Before it answers from 127.0.0.1, the kernel would send an ARP request that no neighbour answers. So the entry
    # exists.
    trial.run("ip", "neigh", "replace", NEIGHBOUR4, "lladdr", link, "dev", LAN_A.interface)
    if trial.mode is Mode.CONTROL:
        _listen_carelessly(trial, trial.cleanups)
    for family, target, source in ((4, LAN_A.client4, NEIGHBOUR4), (6, LAN_A.client6, NEIGHBOUR6)):
        for port, name in ((SOCKS, "SOCKS"), (HTTP, "HTTP")):
            for by in (Actor.NEIGHBOUR, Actor.PROVIDER):
                trial.fire(probe, by=by, family=family, name=f"{name} ipv{family} {by}", trace=_answers, kind=TCP,
                           target=target, port=port)  # fmt: skip
            if family == 4:  # the kernel drops ::1 from a wire in every setting
                trial.fire(to_loopback, by=Actor.NEIGHBOUR, family=family, name=f"{name} to loopback ipv{family}",
                           trace=_answers, port=port, source=source)  # fmt: skip


ATTACK = Attack(
    id="A21",
    name="the proxy from the LAN",
    reference="open proxies of VPN programs",
    summary="Another device on the network tries to use the tunnel program's proxy on this computer.",
    actors=(Actor.NEIGHBOUR, Actor.PROVIDER),
    recognised="by the port that the connection came from, in the answers",
    control="the same connections to a proxy that listens on every address, without the lock",
    run=run,
)
