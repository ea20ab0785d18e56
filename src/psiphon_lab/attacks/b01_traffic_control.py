# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""B01: as A24, and a program of root accepts the frames before the service's filter sees them."""

from __future__ import annotations

from psiphon_lab.attacks._redirects import WIRE, fire_redirected
from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.model import Actor
from psiphon_lab.leaktest.trial import Trial

HANDLE = "7"


def run(trial: Trial) -> None:
    """Do what A24 does, with a program at the card that accepts every frame (TC_ACT_OK, 0).

    It has the preference of the service's filter and is newer: the kernel runs the newest of them first (cls_bpf).
    """
    added = trial.run("tc", "qdisc", "add", "dev", WIRE, "clsact").returncode == 0
    if added:
        trial.undo("tc", "qdisc", "del", "dev", WIRE, "clsact")
    place = ("dev", WIRE, "egress", "protocol", "all", "pref", "1", "handle", HANDLE, "bpf")
    trial.run("tc", "filter", "add", *place, "direct-action", "bytecode", "1,6 0 0 0", check=True)
    trial.undo("tc", "filter", "del", *place)
    fire_redirected(trial)


ATTACK = Attack(
    id="B01",
    name="redirected by traffic control, and accepted",
    reference="tc-bpf(8), tc-mirred(8); the first filter that decides is the last one to run",
    summary="Root does what A24 does, and also adds a program to the network card's own traffic control that accepts "
    "every frame before the filter of the lock runs. A tcx program can do the same; so can removing the filter again "
    "and again, or setting the mark that it requires.",
    actors=(Actor.CONTAINER, Actor.USER),
    recognised="by source port or a token in the payload",
    control="the same frames without the lock",
    run=run,
    out_of_reach="it takes root, or CAP_NET_ADMIN in the machine's own network, and intent: no program adds such a "
    "filter by mistake. Whoever may set up traffic control also decides which filter comes first. status and diagnose "
    "report such a filter",
    tools=("tc",),
)
