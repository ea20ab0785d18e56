# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A25: the kernel itself encapsulates what programs send, by tunnel devices of root's."""

from __future__ import annotations

from psiphon_lab import addresses as plan
from psiphon_lab.addresses import LAN_A
from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.model import Actor
from psiphon_lab.leaktest.trial import Trial
from psiphon_lab.namespace import LabError
from psiphon_lab.sending import DISCARD, send_datagram

DEVICE = "enc77"
HERE = {4: "10.97.0.1/24", 6: "fd97::1/64"}
THERE = {4: "10.97.0.2", 6: "fd97::2"}
THERE_MAC = "02:50:53:00:0e:97"
_ENDS4 = ("local", LAN_A.client4, "remote", plan.INTERNET4)
_ENDS6 = ("local", LAN_A.client6, "remote", plan.INTERNET6)
KINDS: tuple[tuple[str, int, tuple[str, ...]], ...] = (
    ("VXLAN", 4, ("vxlan", "id", "97", *_ENDS4, "dev", LAN_A.interface, "dstport", "4789")),
    ("VXLAN", 6, ("vxlan", "id", "97", *_ENDS6, "dev", LAN_A.interface, "dstport", "4789")),
    ("GENEVE", 4, ("geneve", "id", "97", "remote", plan.INTERNET4)),
    ("GRE", 4, ("gre", *_ENDS4, "ttl", "64", "dev", LAN_A.interface)),
    ("GRE", 6, ("ip6gre", *_ENDS6, "dev", LAN_A.interface)),
    ("IPIP", 4, ("ipip", *_ENDS4, "ttl", "64", "dev", LAN_A.interface)),
    ("IPv6 in IPv6", 6, ("ip6tnl", "mode", "any", *_ENDS6, "dev", LAN_A.interface)),
)
"""What it is, the IP version outside and inside, and words for `ip link add`. A kernel may lack some."""


def run(trial: Trial) -> None:
    """Make each tunnel that this kernel has, and have programs and a container send to a host at its far end."""
    made = 0
    for name, family, words in KINDS:
        if trial.run("ip", "link", "add", DEVICE, "type", *words).returncode:
            continue  # this kernel lacks it
        made += 1
        nodad = ("nodad",) if family == 6 else ()
        trial.run("ip", f"-{family}", "addr", "add", HERE[family], "dev", DEVICE, *nodad, check=True)
        trial.run("ip", "link", "set", DEVICE, "up", check=True)
        trial.run("ip", "neigh", "replace", THERE[family], "lladdr", THERE_MAC, "dev", DEVICE)
        for by in (Actor.ROOT, Actor.USER, Actor.CONTAINER):
            trial.fire(send_datagram, by=by, family=family, name=f"{name} over ipv{family} {by}", target=THERE[family],
                       port=DISCARD)  # fmt: skip
        trial.settle()
        trial.run("ip", "link", "del", DEVICE, check=True)
    if not made:
        raise LabError("this kernel has none of these tunnels")


ATTACK = Attack(
    id="A25",
    name="encapsulated by the kernel",
    reference="ip-link(8): a packet that the kernel encapsulates belongs to no program, or to the one inside",
    summary="A program of root makes a tunnel of the kernel's own (VXLAN, GENEVE, GRE, IPIP), as other VPNs and "
    "clusters do. Programs and a container send by it; the kernel wraps their packets in new ones and sends those.",
    actors=(Actor.ROOT, Actor.USER, Actor.CONTAINER),
    recognised="by a token in the payload",
    control="the same packets without the lock",
    run=run,
    disturbs=True,
)
