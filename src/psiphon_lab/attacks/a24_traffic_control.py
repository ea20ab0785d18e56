# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A24: traffic control redirects frames to the card, past every netfilter hook."""

from __future__ import annotations

from psiphon_lab.attacks._redirects import fire_redirected
from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.model import Actor, Mode

ATTACK = Attack(
    id="A24",
    name="redirected by traffic control",
    reference="tc-mirred(8), bpf_redirect: what traffic control redirects or mirrors skips netfilter's egress hook",
    summary="A program of root sets up the kernel's traffic control so that a container's packets go straight to the "
    "network card, and with them a copy of what programs on this computer send each other, and of what they send into "
    "the tunnel before it is encrypted.",
    actors=(Actor.CONTAINER, Actor.USER),
    recognised="by source port or a token in the payload",
    control="the same frames without the lock",
    run=fire_redirected,
    not_applicable={Mode.BOOT: "the service sets the filter that stops it; SECURITY.md says that it leaks before that"},
    tools=("tc",),
)
