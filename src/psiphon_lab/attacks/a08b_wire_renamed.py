"""A08b: the network card gets another name, or the tunnel's."""

from __future__ import annotations

from psiphon_lab.addresses import LAN_A
from psiphon_lab.attacks._send import volley
from psiphon_lab.leaktest.arena import Arena
from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.terms import Actor, Mode

OTHER = "wan77"
SECONDS = 0.6


def rename(arena: Arena, old: str, new: str) -> None:
    """Give a card another name, and what it had under the old one."""
    for argv in (["set", old, "down"], ["set", old, "name", new], ["set", new, "up"]):
        arena.run("ip", "link", *argv)
    arena.run("ip", "-6", "addr", "add", f"{LAN_A.client6}/{LAN_A.prefix6}", "dev", new, "nodad")
    arena.run("ip", "route", "add", "default", "via", LAN_A.router4, "dev", new, "metric", "100")
    arena.run("ip", "-6", "route", "add", "default", "via", LAN_A.router6, "dev", new, "metric", "100")


def run(arena: Arena) -> None:
    """Renamed while programs talk; then back."""
    volley(arena, "meanwhile", seconds=SECONDS, bound=False)
    arena.wait(0.05)
    rename(arena, LAN_A.interface, OTHER)
    arena.settle()
    rename(arena, OTHER, LAN_A.interface)


ATTACK = Attack(
    id="A08b",
    name="the network card is renamed",
    reference="rules that name interfaces; udev renames cards at every boot",
    plain="The network card gets another name while programs are talking: rules that were made for the old name would "
    "no longer fit.",
    actors=(Actor.ROOT, Actor.USER),
    recognised="by source port or a token in the payload",
    control="the same packets on the renamed card without the lock",
    run=run,
    disturbs=True,
    senseless={Mode.TRANSITION: "the cable is pulled in this state again and again; a card has no name to lose then"},
)
