"""A16b: an interface that nobody has ever seen."""

from __future__ import annotations

import socket

from psiphon_lab import addresses as plan
from psiphon_lab.addresses import LAN_A
from psiphon_lab.attacks._send import ECHO, probe, send_frame
from psiphon_lab.hands import Shot
from psiphon_lab.leaktest.arena import Arena
from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.terms import Actor, Mode
from psiphon_lab.probe import TARGETS, UDP

NEW = "usb77"
CHILD = {4: "192.0.2.76", 6: "2001:db8:a::76"}
MAC = "02:50:53:00:0a:76"
SECONDS = 0.8


def wait_and_send(shot: Shot, *, source: str, target: str) -> str | None:
    """Frames from the very moment at which the interface exists."""
    socket.if_nametoindex(NEW)
    send_frame(shot, interface=NEW, mac=MAC, source=source, target=target)
    return None


def run(arena: Arena) -> None:
    """A new device appears and is up at once; raw frames and bound sockets are waiting for it."""
    for family in (4, 6):
        target = TARGETS["internet"][family]
        arena.fire(wait_and_send, by=Actor.ROOT, family=family, name=f"frame ipv{family}", seconds=SECONDS,
                   source=CHILD[family], target=target)  # fmt: skip
        for by in (Actor.ROOT, Actor.USER):
            arena.fire(probe, by=by, family=family, name=f"UDP ipv{family} {by}", kind=UDP, port=ECHO, target=target,
                       interface=NEW, seconds=SECONDS)  # fmt: skip
    arena.wait(0.1)
    # A child of the card stands for new hardware: like that, it leads onto the wire from its first moment.
    arena.run("ip", "link", "add", NEW, "link", LAN_A.interface, "address", MAC, "up", "type", "macvlan", "mode",
              "bridge", check=True)  # fmt: skip
    arena.undo("ip", "link", "del", NEW)
    arena.run("ip", "addr", "add", f"{CHILD[4]}/25", "dev", NEW)
    arena.run("ip", "-6", "addr", "add", f"{CHILD[6]}/64", "dev", NEW, "nodad")
    arena.run("ip", "route", "add", f"{plan.INTERNET4}/32", "via", LAN_A.router4, "dev", NEW)
    arena.run("ip", "-6", "route", "add", f"{plan.INTERNET6}/128", "via", LAN_A.router6, "dev", NEW)
    arena.settle()


ATTACK = Attack(
    id="A16b",
    name="an interface never seen before",
    reference="rules that are made for each interface come too late for a new one",
    plain="A network device appears that was not there when the rules were made, and programs use it from its first "
    "moment.",
    actors=(Actor.ROOT, Actor.USER),
    recognised="by source port or a token in the payload",
    control="the same packets without the lock",
    run=run,
    disturbs=True,
    senseless={Mode.TRANSITION: "the device hangs on the cable that is pulled in this state again and again"},
)
