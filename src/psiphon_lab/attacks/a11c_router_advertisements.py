# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A11c: the network's router advertises more specific routes (the same for IPv6)."""

from __future__ import annotations

from psiphon_lab.addresses import LAN_A
from psiphon_lab.leaktest.arena import Arena
from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.model import Actor, Mode
from psiphon_lab.namespace import LabError
from psiphon_lab.sending import volley
from psiphon_lab.waiting import wait_until

HALVES = ("::/1", "8000::/1")
CONFIG = """interface lan {
  AdvSendAdvert on; MinRtrAdvInterval 3; MaxRtrAdvInterval 4; MinDelayBetweenRAs 3; IgnoreIfMissing on;
  AdvDefaultPreference high;
  route ::/1 { AdvRoutePreference high; AdvRouteLifetime 600; };
  route 8000::/1 { AdvRoutePreference high; AdvRouteLifetime 600; };
};
"""


def _routes(arena: Arena) -> str:
    return arena.client.run(["ip", "-6", "route"]).stdout


def run(arena: Arena) -> None:
    """Radvd advertises ::/1 and 8000::/1; the kernel accepts them, as it does on distributions; then programs send."""
    wire = LAN_A.interface
    accept = {f"ipv6/conf/{wire}/accept_ra": 2, f"ipv6/conf/{wire}/accept_ra_rt_info_max_plen": 128}
    arena.client.set_sysctls(accept)
    arena.say(f"accept_ra=2, accept_ra_rt_info_max_plen=128 on {wire}")
    arena.cleanups.callback(arena.client.set_sysctls, {f"ipv6/conf/{wire}/accept_ra": 0})
    for half in HALVES:
        arena.undo("ip", "-6", "route", "del", half, "proto", "ra")
    arena.undo("ip", "-6", "route", "del", "default", "proto", "ra", "metric", "1024")
    config, pid = arena.scratch("radvd.conf", CONFIG, shared=True), arena.scratch("radvd.pid", shared=True)
    arena.spawn(["radvd", "-n", "-C", str(config), "-p", str(pid), "-m", "none"], host=arena.stage.world.provider_a)
    try:
        wait_until(lambda: "8000::/1" in _routes(arena), "routes of the router")
        arena.say("::/1 and 8000::/1 came in router advertisements")
    except LabError:
        arena.say("the routes did not come")
        if arena.mode is not Mode.TRANSITION:
            raise
    volley(arena, "with the routes")


ATTACK = Attack(
    id="A11c",
    name="routes from router advertisements",
    reference="RFC 4191; the IPv6 side of CVE-2024-3661",
    summary="The local network's router, or somebody who impersonates it, announces routes for all of IPv6 that are "
    "more specific than the VPN's.",
    actors=(Actor.PROVIDER, Actor.NEIGHBOUR),
    recognised="by source port or a token in the payload",
    control="the same packets with the same routes, without the lock",
    run=run,
    families=(6,),
    tools=("radvd",),
)
