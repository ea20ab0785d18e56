# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A22: another program's rules set the service's mark."""

from __future__ import annotations

import socket
import struct

from psiphon_lab.fork_server import Shot
from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.model import Actor
from psiphon_lab.leaktest.trial import Trial
from psiphon_lab.probe import SO_BINDTODEVICE, TARGETS
from psiphon_lab.sending import ECHO, volley
from psiphon_lab.service_adapter.names import CORE_MARK

SOCKETS_ONLY = True  # see fork_server

SO_MARK = 36
RULES = (
    "table inet marks {{\n chain route {{\n  type route hook output priority -200; policy accept;\n"
    "  meta mark set {mark}; ct mark set {mark}\n }}\n"
    " chain pre {{\n  type filter hook prerouting priority -200; policy accept;\n  meta mark set {mark}\n }}\n}}\n"
)


def marked(shot: Shot, *, target: str, interface: str) -> None:
    """Send through a socket of root with the service's mark."""
    with socket.socket(socket.AF_INET if shot.family == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, SO_MARK, struct.pack("I", CORE_MARK))
        if interface:
            sock.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, interface.encode() + b"\0")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("", shot.source_port))
        sock.sendto(shot.data, (target, ECHO))


def run(trial: Trial) -> None:
    """Add a table that sets the service's mark on every packet, and send through sockets with that mark."""
    trial.run("nft", "-f", "-", input=RULES.format(mark=CORE_MARK), check=True)
    trial.undo("nft", "delete", "table", "inet", "marks")
    volley(trial, "marked by rules", seconds=0.15)
    for family in (4, 6):
        for interface in ("", *(lan.interface for lan in trial.lans)):
            trial.fire(marked, by=Actor.ROOT, family=family, name=f"SO_MARK ipv{family} {interface or 'plain'}",
                       target=TARGETS["internet"][family], interface=interface)  # fmt: skip
    trial.settle()


ATTACK = Attack(
    id="A22",
    name="the service's mark, set by others",
    reference="Tailscale, Kubernetes and others mark packets too",
    summary="Another program marks packets with the mark that the service uses. A lock that trusts marks would let "
    "them pass.",
    actors=(Actor.ROOT,),
    recognised="by source port or a token in the payload",
    control="the same packets with the same rules without the lock",
    run=run,
)
