"""A06: names are asked for outside the tunnel."""

from __future__ import annotations

from psiphon_lab.attacks._send import BOTH, probe, send_datagram
from psiphon_lab.leaktest.arena import Arena
from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.terms import Actor
from psiphon_lab.probe import DNS_TCP, DNS_UDP, TARGETS, TCP

DOT, MDNS, LLMNR, NETBIOS = 853, 5353, 5355, 137
GROUPS = ((MDNS, {4: "224.0.0.251", 6: "ff02::fb"}, "mDNS"), (LLMNR, {4: "224.0.0.252", 6: "ff02::1:3"}, "LLMNR"))


def run(arena: Arena) -> None:
    """UDP and TCP 53 and DoT to the LAN's resolver and a public one, plain and bound; mDNS, LLMNR, NetBIOS."""
    for by in BOTH:
        for family in (4, 6):
            for interface in ("", *(lan.interface for lan in arena.lans)):
                end = f"ipv{family} {interface or 'plain'} {by}"
                for where in ("lan-resolver", "internet"):
                    target = TARGETS[where][family]
                    for kind, port in ((DNS_UDP, 53), (DNS_TCP, 53), (TCP, DOT)):
                        name = f"{'DoT' if port == DOT else kind} {where} {end}"
                        arena.fire(probe, by=by, family=family, name=name, kind=kind, target=target, port=port,
                                   interface=interface)  # fmt: skip
            for lan in arena.lans:
                for port, groups, name in GROUPS:
                    arena.fire(send_datagram, by=by, family=family, name=f"{name} ipv{family} {lan.interface} {by}",
                               target=groups[family], port=port, interface=lan.interface, group=True)  # fmt: skip
        for lan in arena.lans:
            arena.fire(send_datagram, by=by, family=4, name=f"NetBIOS {lan.interface} {by}",
                       target="255.255.255.255", port=NETBIOS, interface=lan.interface, broadcast=True)  # fmt: skip


ATTACK = Attack(
    id="A06",
    name="names asked outside",
    reference="DNS leaks of NordVPN, Amnezia, Proton and others",
    plain="A program, or the system itself, asks the local network, the provider or a public server for a name, so "
    "that they learn where you go: DNS, DNS over TLS, and the local kinds (mDNS, LLMNR, NetBIOS).",
    actors=(Actor.ROOT, Actor.USER),
    recognised="by source port or a token in the name",
    control="the same questions without the lock",
    run=run,
)
