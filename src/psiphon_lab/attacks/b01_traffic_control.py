"""B01: traffic control moves frames onto the card, past every netfilter hook."""

from __future__ import annotations

from psiphon_lab import addresses as plan
from psiphon_lab.addresses import LAN_A
from psiphon_lab.attacks._send import DISCARD, send_datagram, send_frame
from psiphon_lab.leaktest.arena import Arena
from psiphon_lab.leaktest.attack import Actor, Attack
from psiphon_lab.probe import TARGETS


def run(arena: Arena) -> None:
    """What a container sends is redirected onto the card where it comes in (tc-mirred(8), as some CNIs do it).

    And what a user's program says to another on this machine is mirrored from `lo`; one port only, so that the rest of
    the machine goes on as it was.
    """
    wire = LAN_A.interface
    arena.run("tc", "qdisc", "add", "dev", "ctr0", "ingress", check=True)
    arena.undo("tc", "qdisc", "del", "dev", "ctr0", "ingress")
    for protocol, priority in (("ip", "1"), ("ipv6", "2")):
        arena.run("tc", "filter", "add", "dev", "ctr0", "parent", "ffff:", "protocol", protocol, "prio", priority,
                  "u32", "match", "u32", "0", "0", "action", "mirred", "egress", "redirect", "dev", wire,
                  check=True)  # fmt: skip
    arena.run("tc", "qdisc", "add", "dev", "lo", "clsact", check=True)
    arena.undo("tc", "qdisc", "del", "dev", "lo", "clsact")
    for protocol, words, priority in (("ip", "ip", "1"), ("ipv6", "ip6", "2")):
        arena.run("tc", "filter", "add", "dev", "lo", "egress", "protocol", protocol, "prio", priority, "u32", "match",
                  words, "dport", str(DISCARD), "0xffff", "action", "mirred", "egress", "mirror", "dev", wire,
                  check=True)  # fmt: skip
    for family in (4, 6):
        arena.fire(send_datagram, by=Actor.USER, family=family, name=f"mirrored from lo ipv{family}",
                   target="127.0.0.1" if family == 4 else "::1", port=DISCARD)  # fmt: skip
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
    "card, and a copy of what programs of this computer say to each other too. The same can be done to the tunnel's "
    "own device, and then it is a copy of what all applications send, before it is encrypted.",
    actors=(Actor.CONTAINER, Actor.USER),
    recognised="by source port or a token in the payload",
    control="the same frames without the lock",
    run=run,
    beyond="it takes root, or CAP_NET_ADMIN in the machine's own network, and the kernel hands such frames to the "
    "card without asking any netfilter hook. A filter of ours at the card's own traffic control would stop these, but "
    "any filter or BPF program before it can let them by, and it goes with one command. The lock has no such filter",
    tools=("tc",),
)
