# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A01: a program sends ordinary packets."""

from __future__ import annotations

from psiphon_lab import addresses as plan
from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.model import Actor
from psiphon_lab.leaktest.trial import Trial
from psiphon_lab.probe import ICMP, TARGETS, TCP, UDP
from psiphon_lab.sending import BOTH, ECHO, WEB, probe

TRIED = (
    (TCP, "internet", WEB),
    (TCP, "server", plan.SERVER_PORT),
    (TCP, "neighbour", WEB),
    (UDP, "internet", ECHO),
    (UDP, "server", ECHO),
    (UDP, "neighbour", ECHO),
    (ICMP, "internet", 0),
    (ICMP, "server", 0),
    (ICMP, "neighbour", 0),
)


def run(trial: Trial) -> None:
    """Send TCP, UDP and ICMP to the internet, to the LAN and to the tunnel server's own address."""
    for kind, where, port in TRIED:
        for family in (4, 6):
            for by in BOTH:
                trial.fire(
                    probe, by=by, family=family, name=f"{kind} {where} ipv{family} {by}",
                    kind=kind, target=TARGETS[where][family], port=port,
                )  # fmt: skip


ATTACK = Attack(
    id="A01",
    name="plain packets",
    reference="the basic promise; MUL-02-002",
    summary="A program opens a connection or sends a packet, as every program does: to the internet, to a device on "
    "the local network, or to the tunnel server's own address.",
    actors=(Actor.ROOT, Actor.USER),
    recognised="by source port (TCP, UDP) or a token in the payload",
    control="the same packets without the lock",
    run=run,
)
