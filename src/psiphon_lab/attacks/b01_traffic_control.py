"""B01: traffic control moves frames onto the card, and a program of root's lets them by before our filter is asked."""

from __future__ import annotations

from psiphon_lab.attacks._redirects import WIRE, fire_redirected
from psiphon_lab.leaktest.arena import Arena
from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.terms import Actor

HANDLE = "7"


def run(arena: Arena) -> None:
    """As A24, behind a program at the card that says OK (TC_ACT_OK, 0) to every frame.

    With the preference of ours, and newer: the kernel asks the newest of them first (cls_bpf).
    """
    added = arena.run("tc", "qdisc", "add", "dev", WIRE, "clsact").returncode == 0
    if added:
        arena.undo("tc", "qdisc", "del", "dev", WIRE, "clsact")
    place = ("dev", WIRE, "egress", "protocol", "all", "pref", "1", "handle", HANDLE, "bpf")
    arena.run("tc", "filter", "add", *place, "direct-action", "bytecode", "1,6 0 0 0", check=True)
    arena.undo("tc", "filter", "del", *place)
    fire_redirected(arena)


ATTACK = Attack(
    id="B01",
    name="redirected by traffic control, and let by",
    reference="tc-bpf(8), tc-mirred(8); the first filter that decides is the last that is asked",
    plain="Root does what A24 does, and beside it puts a program at the network card's own traffic control that lets "
    "every frame by before the filter of the lock is asked. A tcx program can do the same, or taking the filter away "
    "again and again, or by setting the mark that it asks for.",
    actors=(Actor.CONTAINER, Actor.USER),
    recognised="by source port or a token in the payload",
    control="the same frames without the lock",
    run=run,
    beyond="it takes root, or CAP_NET_ADMIN in the machine's own network, and the wish to get past this lock: no "
    "program puts such a filter there by mistake. Whoever may set up traffic control may also say which filter comes "
    "first. status and diagnose say that one does",
    tools=("tc",),
)
