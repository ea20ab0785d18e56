# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A15: containers and virtual machines behind this machine."""

from __future__ import annotations

from psiphon_lab.addresses import LAN_A
from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.model import EGRESS, Actor
from psiphon_lab.leaktest.trial import Trial
from psiphon_lab.probe import ICMP, TARGETS, TCP, UDP
from psiphon_lab.sending import ECHO, WEB, probe, send_frame

# As with Docker and libvirt: containers' packets get the address of the card by which they leave.
NAT = (
    "table inet container_nat {\n chain out {\n  type nat hook postrouting priority 90; policy accept;\n"
    '  iifname "ctr0" oifname != "ctr0" masquerade\n }\n'
    " chain pass {\n  type filter hook forward priority -10; policy accept;\n"
    '  iifname "ctr0" accept\n }\n}\n'
)
CHILD = {4: "192.0.2.78", 6: "2001:db8:a::78"}


def _talk(trial: Trial, label: str, *, interface: str = "", needs: str = "") -> None:
    for family in (4, 6):
        for kind, where, port in ((UDP, "internet", ECHO), (TCP, "internet", WEB), (UDP, "neighbour", ECHO),
                                  (ICMP, "internet", 0)):  # fmt: skip
            trial.fire(probe, by=Actor.CONTAINER, family=family, name=f"{label} {kind} {where} ipv{family}",
                       kind=kind, target=TARGETS[where][family], port=port, interface=interface,
                       needs=needs)  # fmt: skip


def run(trial: Trial) -> None:
    """Send from a routed container, a NATed one, and through a child of the card (macvlan)."""
    container, wire = trial.testbed.world.container, LAN_A.interface
    # Routed: the network outside has a route back.
    _talk(trial, "routed")
    trial.settle()
    trial.run("nft", "-f", "-", input=NAT, check=True)
    trial.undo("nft", "delete", "table", "inet", "container_nat")
    _talk(trial, "NATed")
    trial.settle()
    # A child of the card, in the container: its frames pass no IP hook of this machine.
    trial.run("ip", "link", "add", "mv0", "link", wire, "type", "macvlan", "mode", "bridge", check=True)
    trial.run("ip", "link", "set", "mv0", "netns", str(container.pid), check=True)
    trial.undo("ip", "link", "del", "mv0", host=container)
    trial.run("ip", "addr", "add", f"{CHILD[4]}/25", "dev", "mv0", host=container)
    trial.run("ip", "-6", "addr", "add", f"{CHILD[6]}/64", "dev", "mv0", "nodad", host=container)
    trial.run("ip", "link", "set", "mv0", "up", host=container)
    for version, router in (("-4", LAN_A.router4), ("-6", LAN_A.router6)):
        trial.run("ip", version, "route", "replace", "default", "via", router, "dev", "mv0", "metric", "1",
                  host=container)  # fmt: skip
    for family in (4, 6):
        source, target = CHILD[family], TARGETS["internet"][family]
        trial.fire(send_frame, by=Actor.CONTAINER, family=family, name=f"macvlan frame ipv{family}", interface="mv0",
                   mac="02:50:53:00:0c:01", source=source, target=target, needs=EGRESS)  # fmt: skip
        # macvlan passes only its own address on, so the frame above may not show; this one names no address at all.
    _talk(trial, "macvlan", interface="mv0", needs=EGRESS)
    trial.settle()


ATTACK = Attack(
    id="A15",
    name="containers and virtual machines",
    reference="Docker's and libvirt's leaks around VPNs",
    summary="A container or virtual machine on this computer sends: routed, translated (NAT), or through a child of "
    "the network card (macvlan). Its packets do not pass the rules for local programs.",
    actors=(Actor.CONTAINER,),
    recognised="by source port (kept by translation) or a token in the payload",
    control="the same packets without the lock",
    run=run,
)
