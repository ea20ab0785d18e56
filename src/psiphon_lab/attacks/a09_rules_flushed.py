"""A09: somebody takes our rules away."""

from __future__ import annotations

from psiphon_lab.attacks._send import volley
from psiphon_lab.leaktest.arena import Arena
from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.terms import Actor, Mode
from psiphon_vpn.policy import names

PAUSE = 0.12
NOBODY_MENDS = {Mode.BOOT, Mode.DAEMON_KILLED, Mode.DAEMON_STOPPED, Mode.SERVICE_STOPPED}
BASE = ("inet", names.BASE_TABLE)
# What Debian's nftables.service loads: everything away, and three chains that accept.
RESTARTED = "".join(
    ["flush ruleset\n", "table inet filter {\n"]
    + [f" chain {hook} {{\n  type filter hook {hook} priority 0\n }}\n" for hook in ("input", "forward", "output")]
    + ["}\n"]
)


def run(arena: Arena) -> None:
    """Flushed, deleted, emptied, opened, replaced, while programs and raw frames try to get out."""
    restarted = arena.scratch("nftables.conf", RESTARTED)
    commands = (
        ["nft", "flush", "ruleset"],
        ["nft", "delete", "table", *BASE],
        ["nft", "flush", "table", *BASE],
        ["nft", "insert", "rule", *BASE, "output", "accept"],
        ["nft", "chain", *BASE, "output", "{ policy accept; }"],
        ["nft", "add", "table", *BASE, "{ flags dormant; }"],
        ["nft", "delete", "table", "netdev", names.EGRESS_TABLE],
        ["nft", "delete", "table", "inet", names.GUARD_TABLE],
        ["nft", "flush", "table", "inet", names.GUARD_TABLE],
        ["nft", "delete", "table", "arp", names.ARP_TABLE],
        ["nft", "-f", str(restarted)],
    )
    volley(arena, "meanwhile", seconds=len(commands) * (PAUSE + 0.03), raw=True)
    arena.wait(0.05)
    for argv in commands:
        arena.run(*argv)
        arena.wait(PAUSE)
        if arena.mode in NOBODY_MENDS:
            # So that the next one has something to take away; without a daemon nobody else would put it there.
            arena.stage.machine.boot_lock()
    arena.undo("nft", "delete", "table", "inet", "filter")


ATTACK = Attack(
    id="A09",
    name="the rules are flushed",
    reference="`nft flush ruleset`, a restart of nftables.service; defects of many kill switches",
    plain="Root, or a program that root started, deletes all firewall rules, or ours, or opens them: by hand, or "
    "because a firewall service is restarted.",
    actors=(Actor.ROOT,),
    recognised="by source port or a token in the payload",
    control="the same packets without the lock",
    run=run,
    disturbs=True,
)
