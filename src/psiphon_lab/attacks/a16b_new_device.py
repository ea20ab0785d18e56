# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A16b: a new interface appears."""

from __future__ import annotations

import socket

from psiphon_lab import addresses as plan
from psiphon_lab.addresses import LAN_A
from psiphon_lab.fork_server import Shot
from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.model import EGRESS, Actor, Mode
from psiphon_lab.leaktest.trial import Trial
from psiphon_lab.probe import TARGETS, UDP
from psiphon_lab.sending import ECHO, probe, send_frame

NEW = "usb77"
CHILD = {4: "192.0.2.76", 6: "2001:db8:a::76"}
MAC = "02:50:53:00:0a:76"
SECONDS = 0.8


def wait_and_send(shot: Shot, *, source: str, target: str) -> str | None:
    """Send a frame as soon as the interface exists."""
    socket.if_nametoindex(NEW)
    send_frame(shot, interface=NEW, mac=MAC, source=source, target=target)
    return None


def run(trial: Trial) -> None:
    """Add a device that is up at once, while raw frames and bound sockets wait for it."""
    for family in (4, 6):
        target = TARGETS["internet"][family]
        trial.fire(wait_and_send, by=Actor.ROOT, family=family, name=f"frame ipv{family}", seconds=SECONDS,
                   source=CHILD[family], target=target, needs=EGRESS)  # fmt: skip
        for by in (Actor.ROOT, Actor.USER):
            trial.fire(probe, by=by, family=family, name=f"UDP ipv{family} {by}", kind=UDP, port=ECHO, target=target,
                       interface=NEW, seconds=SECONDS)  # fmt: skip
    trial.wait(0.1)
    # A child of the card represents new hardware: it leads to the wire from its first moment.
    trial.run("ip", "link", "add", NEW, "link", LAN_A.interface, "address", MAC, "up", "type", "macvlan", "mode",
              "bridge", check=True)  # fmt: skip
    trial.undo("ip", "link", "del", NEW)
    trial.run("ip", "addr", "add", f"{CHILD[4]}/25", "dev", NEW)
    trial.run("ip", "-6", "addr", "add", f"{CHILD[6]}/64", "dev", NEW, "nodad")
    trial.run("ip", "route", "add", f"{plan.INTERNET4}/32", "via", LAN_A.router4, "dev", NEW)
    trial.run("ip", "-6", "route", "add", f"{plan.INTERNET6}/128", "via", LAN_A.router6, "dev", NEW)
    trial.settle()


ATTACK = Attack(
    id="A16b",
    name="new interface",
    reference="rules that are made for each interface come too late for a new one",
    summary="A network device appears that was not there when the rules were made, and programs use it from its first "
    "moment.",
    actors=(Actor.ROOT, Actor.USER),
    recognised="by source port or a token in the payload",
    control="the same packets without the lock",
    run=run,
    disturbs=True,
    not_applicable={Mode.TRANSITION: "the device is a child of the card, which this state unplugs again and again"},
)
