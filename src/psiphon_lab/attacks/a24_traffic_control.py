"""A24: traffic control moves frames onto the card, past every netfilter hook."""

from __future__ import annotations

from psiphon_lab.attacks._redirects import fire_redirected
from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.terms import Actor, Mode

ATTACK = Attack(
    id="A24",
    name="redirected by traffic control",
    reference="tc-mirred(8), bpf_redirect; netfilter's egress hook is skipped for what traffic control redirects or "
    "mirrors, on its way in or out",
    plain="A program of root sets up the kernel's traffic control so that what a container sends is put straight onto "
    "the network card, and a copy of what programs of this computer say to each other too, and of what they send into "
    "the tunnel, before it is encrypted.",
    actors=(Actor.CONTAINER, Actor.USER),
    recognised="by source port or a token in the payload",
    control="the same frames without the lock",
    run=fire_redirected,
    senseless={Mode.BOOT: "the filter that stops it comes with the service; that it leaks before is in SECURITY.md"},
    tools=("tc",),
)
