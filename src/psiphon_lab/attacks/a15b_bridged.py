# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A15b: a virtual machine bridged onto the wire."""

from __future__ import annotations

from psiphon_lab.addresses import LAN_A
from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.model import EGRESS, Actor, Mode
from psiphon_lab.leaktest.trial import Trial
from psiphon_lab.probe import TARGETS, TCP, UDP
from psiphon_lab.sending import ECHO, WEB, probe, send_frame

MACHINE = {4: "192.0.2.79", 6: "2001:db8:a::79"}
MACHINE_MAC = "02:50:53:00:0c:03"


def run(trial: Trial) -> None:
    """Make the card a port of a bridge, as for a bridged virtual machine; the container is at the other port."""
    container, wire = trial.testbed.world.container, LAN_A.interface
    trial.run("ip", "link", "add", "br77", "type", "bridge", "forward_delay", "0", check=True)
    trial.undo("ip", "link", "del", "br77")
    trial.run("ip", "link", "add", "vm0", "type", "veth", "peer", "name", "vm1", check=True)
    trial.undo("ip", "link", "del", "vm0")
    trial.run("ip", "link", "set", "vm1", "netns", str(container.pid), "address", MACHINE_MAC)
    trial.run("ip", "link", "set", "vm0", "master", "br77", "up")
    trial.run("ip", "link", "set", wire, "master", "br77")
    trial.undo("ip", "link", "set", wire, "nomaster")
    trial.run("ip", "link", "set", "br77", "up")
    for family, option in ((4, []), (6, ["nodad"])):
        prefix = 25 if family == 4 else 64
        trial.run("ip", f"-{family}", "addr", "add", f"{MACHINE[family]}/{prefix}", "dev", "vm1", *option,
                  host=container)  # fmt: skip
    trial.run("ip", "link", "set", "vm1", "up", host=container)
    trial.wait(0.15)
    for family in (4, 6):
        target = TARGETS["internet"][family]
        trial.fire(send_frame, by=Actor.CONTAINER, family=family, name=f"frame ipv{family}", interface="vm1",
                   mac=MACHINE_MAC, source=MACHINE[family], target=target, seconds=0.3, needs=EGRESS)  # fmt: skip
        for kind, port in ((UDP, ECHO), (TCP, WEB)):
            trial.fire(probe, by=Actor.CONTAINER, family=family, name=f"{kind} neighbour ipv{family}", kind=kind,
                       target=TARGETS["neighbour"][family], port=port, interface="vm1", seconds=0.3,
                       needs=EGRESS)  # fmt: skip
    trial.settle()


ATTACK = Attack(
    id="A15b",
    name="virtual machine bridged to the wire",
    reference="bridged networking of libvirt, VirtualBox and others",
    summary="A virtual machine shares the computer's network card through a bridge. What it sends passes no IP rule of "
    "the computer at all.",
    actors=(Actor.CONTAINER,),
    recognised="by source port or a token in the payload",
    control="the same frames without the lock",
    run=run,
    disturbs=True,
    not_applicable={Mode.TRANSITION: "this state unplugs the cable, a port of the bridge, again and again"},
)
