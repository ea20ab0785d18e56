# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A06: DNS queries outside the tunnel."""

from __future__ import annotations

from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.model import Actor
from psiphon_lab.leaktest.trial import Trial
from psiphon_lab.probe import DNS_TCP, DNS_UDP, TARGETS, TCP
from psiphon_lab.sending import BOTH, probe, send_datagram

DOT, MDNS, LLMNR, NETBIOS = 853, 5353, 5355, 137
GROUPS = ((MDNS, {4: "224.0.0.251", 6: "ff02::fb"}, "mDNS"), (LLMNR, {4: "224.0.0.252", 6: "ff02::1:3"}, "LLMNR"))


def run(trial: Trial) -> None:
    """Query the LAN's resolver and a public one over UDP, TCP and DoT, unbound and bound; send mDNS, LLMNR, NetBIOS."""
    for by in BOTH:
        for family in (4, 6):
            for interface in ("", *(lan.interface for lan in trial.lans)):
                end = f"ipv{family} {interface or 'plain'} {by}"
                for where in ("lan-resolver", "internet"):
                    target = TARGETS[where][family]
                    for kind, port in ((DNS_UDP, 53), (DNS_TCP, 53), (TCP, DOT)):
                        name = f"{'DoT' if port == DOT else kind} {where} {end}"
                        trial.fire(probe, by=by, family=family, name=name, kind=kind, target=target, port=port,
                                   interface=interface)  # fmt: skip
            for lan in trial.lans:
                for port, groups, name in GROUPS:
                    trial.fire(send_datagram, by=by, family=family, name=f"{name} ipv{family} {lan.interface} {by}",
                               target=groups[family], port=port, interface=lan.interface, group=True)  # fmt: skip
        for lan in trial.lans:
            trial.fire(send_datagram, by=by, family=4, name=f"NetBIOS {lan.interface} {by}",
                       target="255.255.255.255", port=NETBIOS, interface=lan.interface, broadcast=True)  # fmt: skip


ATTACK = Attack(
    id="A06",
    name="DNS queries outside",
    reference="DNS leaks of NordVPN, Amnezia, Proton and others",
    summary="A program, or the system itself, looks up a name on the local network, at the provider or at a public "
    "server, so that they learn where you go: DNS, DNS over TLS, and local protocols (mDNS, LLMNR, NetBIOS).",
    actors=(Actor.ROOT, Actor.USER),
    recognised="by source port or a token in the name",
    control="the same queries without the lock",
    run=run,
)
