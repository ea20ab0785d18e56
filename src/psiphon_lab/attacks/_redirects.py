"""Redirects and mirrors onto a card by traffic control (tc-mirred(8)), and what is sent into them."""

from __future__ import annotations

from psiphon_lab import addresses as plan
from psiphon_lab.addresses import LAN_A
from psiphon_lab.attacks._send import DISCARD, send_datagram, send_frame
from psiphon_lab.leaktest.arena import Arena
from psiphon_lab.leaktest.terms import Actor
from psiphon_lab.probe import TARGETS
from psiphon_vpn.policy.names import TUN_NAME

WIRE = LAN_A.interface
PROTOCOLS = (("ip", "ip", "1"), ("ipv6", "ip6", "2"))


def redirect_container(arena: Arena) -> None:
    """What a container sends goes onto the card where it comes in, as some container networks do it."""
    arena.run("tc", "qdisc", "add", "dev", "ctr0", "ingress", check=True)
    arena.undo("tc", "qdisc", "del", "dev", "ctr0", "ingress")
    for protocol, _, priority in PROTOCOLS:
        arena.run("tc", "filter", "add", "dev", "ctr0", "parent", "ffff:", "protocol", protocol, "prio", priority,
                  "u32", "match", "u32", "0", "0", "action", "mirred", "egress", "redirect", "dev", WIRE,
                  check=True)  # fmt: skip


def mirror(arena: Arena, device: str, *, check: bool) -> None:
    """What leaves by a device for one port goes onto the card as well; the rest of the machine goes on as it was."""
    arena.run("tc", "qdisc", "add", "dev", device, "clsact", check=check)
    arena.undo("tc", "qdisc", "del", "dev", device, "clsact")
    for protocol, words, priority in PROTOCOLS:
        arena.run("tc", "filter", "add", "dev", device, "egress", "protocol", protocol, "prio", priority, "u32",
                  "match", words, "dport", str(DISCARD), "0xffff", "action", "mirred", "egress", "mirror", "dev", WIRE,
                  check=check)  # fmt: skip


def fire_redirected(arena: Arena) -> None:
    """Everything of it: of a container, of one program here to another, and of a program to the internet."""
    redirect_container(arena)
    mirror(arena, "lo", check=True)
    # Without the lock there is no TUN, and what a program sends to the internet leaves by the card anyhow.
    mirror(arena, TUN_NAME, check=False)
    for family in (4, 6):
        arena.fire(send_datagram, by=Actor.USER, family=family, name=f"mirrored from lo ipv{family}",
                   target="127.0.0.1" if family == 4 else "::1", port=DISCARD)  # fmt: skip
        arena.fire(send_datagram, by=Actor.USER, family=family, name=f"mirrored from the TUN ipv{family}",
                   target=TARGETS["internet"][family], port=DISCARD)  # fmt: skip
        source = plan.CONTAINER4 if family == 4 else plan.CONTAINER6
        arena.fire(send_frame, by=Actor.CONTAINER, family=family, name=f"redirected ipv{family}", interface="eth0",
                   mac="02:50:53:00:0c:02", source=source, target=TARGETS["internet"][family])  # fmt: skip
    arena.settle()
