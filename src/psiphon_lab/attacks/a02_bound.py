# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A02: a program binds its socket to the network card."""

from __future__ import annotations

from psiphon_lab import addresses as plan
from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.model import Actor
from psiphon_lab.leaktest.trial import Trial
from psiphon_lab.probe import ICMP, TARGETS, TCP, UDP
from psiphon_lab.sending import BOTH, ECHO, WEB, probe


def run(trial: Trial) -> None:
    """Send TCP, UDP and ICMP with SO_BINDTODEVICE to the internet, the tunnel server and the LAN."""
    targets = ((TCP, "internet", WEB), (TCP, "server", plan.SERVER_PORT), (UDP, "internet", ECHO),
               (UDP, "neighbour", ECHO), (ICMP, "internet", 0))  # fmt: skip
    for lan in trial.lans:
        for kind, where, port in targets:
            for family in (4, 6):
                for by in BOTH:
                    trial.fire(
                        probe, by=by, family=family, name=f"{kind} {where} ipv{family} {lan.interface} {by}",
                        kind=kind, target=TARGETS[where][family], port=port, interface=lan.interface,
                    )  # fmt: skip


ATTACK = Attack(
    id="A02",
    name="socket bound to the wire",
    reference="SO_BINDTODEVICE, open to every user since Linux 5.7; defeats kill switches that only change routes",
    summary="A program chooses the network card for its connection, whatever the routes say. Since Linux 5.7 every "
    "user may do that.",
    actors=(Actor.ROOT, Actor.USER),
    recognised="by source port (TCP, UDP) or a token in the payload",
    control="the same packets without the lock",
    run=run,
)
