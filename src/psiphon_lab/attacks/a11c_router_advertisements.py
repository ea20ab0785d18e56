# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A11c: the network's router advertises more specific routes (the same for IPv6)."""

from __future__ import annotations

from psiphon_lab.addresses import LAN_A
from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.model import Actor, Mode
from psiphon_lab.leaktest.trial import Trial
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


def _routes(trial: Trial) -> str:
    return trial.client.run(["ip", "-6", "route"]).stdout


def run(trial: Trial) -> None:
    """Radvd advertises ::/1 and 8000::/1; the kernel accepts them, as it does on distributions; then programs send."""
    wire = LAN_A.interface
    accept = {f"ipv6/conf/{wire}/accept_ra": 2, f"ipv6/conf/{wire}/accept_ra_rt_info_max_plen": 128}
    trial.client.set_sysctls(accept)
    trial.say(f"accept_ra=2, accept_ra_rt_info_max_plen=128 on {wire}")
    trial.cleanups.callback(trial.client.set_sysctls, {f"ipv6/conf/{wire}/accept_ra": 0})
    for half in HALVES:
        trial.undo("ip", "-6", "route", "del", half, "proto", "ra")
    trial.undo("ip", "-6", "route", "del", "default", "proto", "ra", "metric", "1024")
    config, pid = trial.scratch("radvd.conf", CONFIG, shared=True), trial.scratch("radvd.pid", shared=True)
    trial.spawn(["radvd", "-n", "-C", str(config), "-p", str(pid), "-m", "none"], host=trial.testbed.world.provider_a)
    try:
        wait_until(lambda: "8000::/1" in _routes(trial), "routes of the router")
        trial.say("::/1 and 8000::/1 came in router advertisements")
    except LabError:
        trial.say("the routes did not come")
        if trial.mode is not Mode.TRANSITION:
            raise
    volley(trial, "with the routes")


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
