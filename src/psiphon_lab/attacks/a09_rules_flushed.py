# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A09: another program removes or changes the service's rules."""

from __future__ import annotations

from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.model import OWNER, Actor, Mode
from psiphon_lab.leaktest.trial import Trial
from psiphon_lab.sending import volley
from psiphon_lab.service_adapter import names

PAUSE = 0.12
WITHOUT_DAEMON = {Mode.BOOT, Mode.DAEMON_KILLED, Mode.DAEMON_STOPPED, Mode.SERVICE_STOPPED}
BASE = ("inet", names.BASE_TABLE)
# What Debian's nftables.service loads: it removes everything and adds three chains that accept.
RESTARTED = "".join(
    ["flush ruleset\n", "table inet filter {\n"]
    + [f" chain {hook} {{\n  type filter hook {hook} priority 0\n }}\n" for hook in ("input", "forward", "output")]
    + ["}\n"]
)


def run(trial: Trial) -> None:
    """Flush, delete, empty, open and replace the rules while programs send packets and raw frames."""
    restarted = trial.scratch("nftables.conf", RESTARTED)
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
    volley(trial, "meanwhile", seconds=len(commands) * (PAUSE + 0.03), raw=True)
    trial.wait(0.05)
    for argv in commands:
        trial.run(*argv)
        trial.wait(PAUSE)
        if trial.mode in WITHOUT_DAEMON:
            # Without a daemon nothing restores the rules, and the next command needs them.
            trial.testbed.machine.boot_lock()
    trial.undo("nft", "delete", "table", "inet", "filter")


ATTACK = Attack(
    id="A09",
    name="rules flushed",
    reference="`nft flush ruleset`, a restart of nftables.service; defects of many kill switches",
    summary="Root, or a program that root started, deletes all firewall rules or the service's, or opens them: by "
    "hand, or because a firewall service restarts.",
    actors=(Actor.ROOT,),
    recognised="by source port or a token in the payload",
    control="the same packets without the lock",
    run=run,
    disturbs=True,
    needs=(OWNER,),
)
