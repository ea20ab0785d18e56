"""B01: traffic control moves frames onto the card, past every netfilter hook."""

from __future__ import annotations

from psiphon_vpn.lab import addresses as plan
from psiphon_vpn.lab.addresses import LAN_A
from psiphon_vpn.lab.attacks._send import send_frame
from psiphon_vpn.lab.leaktest.arena import Arena
from psiphon_vpn.lab.leaktest.attack import Actor, Attack
from psiphon_vpn.lab.probe import TARGETS


def run(arena: Arena) -> None:
    """What a container sends is redirected onto the card where it comes in (tc-mirred(8), as some CNIs do it)."""
    wire = LAN_A.interface
    arena.run("tc", "qdisc", "add", "dev", "ctr0", "ingress", check=True)
    arena.undo("tc", "qdisc", "del", "dev", "ctr0", "ingress")
    for protocol, priority in (("ip", "1"), ("ipv6", "2")):
        arena.run("tc", "filter", "add", "dev", "ctr0", "parent", "ffff:", "protocol", protocol, "prio", priority,
                  "u32", "match", "u32", "0", "0", "action", "mirred", "egress", "redirect", "dev", wire,
                  check=True)  # fmt: skip
    for family in (4, 6):
        source = plan.CONTAINER4 if family == 4 else plan.CONTAINER6
        arena.fire(send_frame, by=Actor.CONTAINER, family=family, name=f"redirected ipv{family}", interface="eth0",
                   mac="02:50:53:00:0c:02", source=source, target=TARGETS["internet"][family])  # fmt: skip
    arena.settle()


ATTACK = Attack(
    id="B01",
    name="redirected by traffic control",
    reference="tc-mirred(8), bpf_redirect; netfilter's egress hook is skipped for what traffic control redirects or "
    "mirrors, on its way in or out",
    plain="Root sets up the kernel's traffic control so that what a container sends is put straight onto the network "
    "card. The same can be done to the tunnel's own device, and then it is what all applications send.",
    actors=(Actor.CONTAINER,),
    recognised="by source port or a token in the payload",
    control="the same frames without the lock",
    run=run,
    beyond="it takes root, or CAP_NET_ADMIN in the machine's own network, and the kernel hands redirected frames to "
    "the card without asking any netfilter hook. A filter of ours at the card's own traffic control would see them, "
    "but it can match no owner, a filter or BPF program before it decides first, and it is no layer of this lock",
    tools=("tc",),
)
