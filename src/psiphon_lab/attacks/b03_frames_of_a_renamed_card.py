"""B03: raw frames on a network card that was renamed, or has only just appeared."""

from __future__ import annotations

from psiphon_lab.addresses import LAN_A
from psiphon_lab.attacks._send import fire_frame
from psiphon_lab.attacks.a08b_wire_renamed import OTHER, rename
from psiphon_lab.leaktest.arena import Arena
from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.terms import Actor, Mode


def run(arena: Arena) -> None:
    """Renamed; raw frames from its first moment under the new name; then back."""
    rename(arena, LAN_A.interface, OTHER)
    for family in (4, 6):
        fire_frame(arena, f"frame ipv{family}", family, OTHER, seconds=0.3)
    arena.settle()
    rename(arena, OTHER, LAN_A.interface)


ATTACK = Attack(
    id="B03",
    name="raw frames of a renamed card",
    reference="since Linux 6.16 a netdev hook belongs to a name, not to a device",
    plain="Root renames the network card and writes raw frames to it at once, before the service saw the new name; "
    "or while no service runs that could see it.",
    actors=(Actor.ROOT,),
    recognised="by source port or a token in the payload",
    control="the same frames without the lock",
    run=run,
    disturbs=True,
    beyond="it takes root, and the kernel takes the rule off the card together with its name. Where the service has "
    "put its filter at the card's traffic control, nothing leaves by it until it has another guard; before that, from "
    "a boot on, there is no filter",
    senseless={Mode.TRANSITION: "the cable is pulled in this state again and again; a card has no name to lose then"},
)
