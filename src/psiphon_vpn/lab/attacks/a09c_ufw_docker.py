"""A09c: ufw and Docker write their rules."""

from __future__ import annotations

from psiphon_vpn.lab.attacks._send import volley
from psiphon_vpn.lab.leaktest.arena import Arena
from psiphon_vpn.lab.leaktest.attack import Actor, Attack

TABLES = (("ip", "filter"), ("ip", "nat"), ("ip6", "filter"), ("ip6", "nat"), ("ip", "raw"), ("ip", "mangle"))
# What dockerd does with iptables when it starts, with a network 10.88.0.0/24 on ctr0.
DOCKER = (
    "-t nat -N DOCKER", "-N DOCKER", "-N DOCKER-FORWARD", "-N DOCKER-USER",
    "-t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER",
    "-t nat -A POSTROUTING -s 10.88.0.0/24 ! -o ctr0 -j MASQUERADE",
    "-I FORWARD -j DOCKER-USER", "-A DOCKER-USER -j RETURN", "-A FORWARD -i ctr0 ! -o ctr0 -j ACCEPT",
    "-A FORWARD -o ctr0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
)  # fmt: skip
# What ufw loads when it is enabled with "allow outgoing", and its flush before.
UFW = (
    "-F", "-X", "-t nat -F", "-t nat -X", "-P INPUT DROP", "-P OUTPUT ACCEPT", "-P FORWARD DROP",
    "-N ufw-user-output", "-A OUTPUT -j ufw-user-output", "-A ufw-user-output -j ACCEPT",
)  # fmt: skip


def run(arena: Arena) -> None:
    """Their own commands, with the iptables of this machine, while programs and raw frames try to get out."""
    volley(arena, "meanwhile", seconds=0.9, raw=True)
    for word in DOCKER:
        arena.run("iptables-nft", *word.split())
    for program in ("iptables-nft", "ip6tables-nft"):
        for word in UFW:
            if "nat" not in word:
                arena.run(program, *word.split())
    # As ufw has it: without neighbour discovery there would be no IPv6 at all.
    arena.run("ip6tables-nft", "-A", "INPUT", "-p", "icmpv6", "-j", "ACCEPT")
    arena.settle()
    for family, table in TABLES:
        arena.undo("nft", "delete", "table", family, table)


ATTACK = Attack(
    id="A09c",
    name="ufw's and Docker's rules",
    reference="firewall front ends and Docker insert rules of their own at any time",
    plain="Ubuntu's firewall front end, or Docker, writes its own rules, which accept what goes out and rewrite what "
    "containers send.",
    actors=(Actor.ROOT,),
    recognised="by source port or a token in the payload",
    control="the same packets with those rules alone",
    run=run,
    disturbs=True,
    tools=("iptables-nft", "ip6tables-nft"),
)
