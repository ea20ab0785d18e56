# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A11b: the same routes, with another DHCP client."""

from __future__ import annotations

import contextlib
import os
import signal

from psiphon_lab.addresses import LAN_A, NEIGHBOUR4
from psiphon_lab.attacks.a11_option_121 import DHCLIENT, forget_routes, require_routes, serve_routes
from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.model import Actor
from psiphon_lab.leaktest.trial import Trial
from psiphon_lab.sending import volley

CONFIG = """option rfc3442-routes code 121 = array of unsigned integer 8;
request subnet-mask, rfc3442-routes;
timeout 3; retry 1; initial-interval 1; select-timeout 0;
"""


def _end_daemons(trial: Trial) -> None:
    text = trial.scratch_path("pid").read_text(encoding="ascii").strip()
    if text.isdigit():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(text), signal.SIGTERM)


def run(trial: Trial) -> None:
    """Let dhclient request an address; dnsmasq answers, and the script adds the routes; then send."""
    serve_routes(trial)
    forget_routes(trial)
    script = trial.scratch("dhclient.sh", DHCLIENT.format(attacker=NEIGHBOUR4), mode=0o755)
    config = trial.scratch("dhclient.conf", CONFIG)
    trial.run(
        "timeout", "4", "dhclient", "-1", "-4", "-sf", str(script), "-cf", str(config), "-lf",
        str(trial.scratch("lease")), "-pf", str(trial.scratch("pid")), LAN_A.interface,
    )  # fmt: skip
    trial.cleanups.callback(_end_daemons, trial)
    require_routes(trial)
    volley(trial, "with the routes")


ATTACK = Attack(
    id="A11b",
    name="routes from DHCP (dhclient)",
    reference="TunnelVision, CVE-2024-3661 (RFC 3442)",
    summary="The same as A11 with the DHCP client that Debian used for decades, which sends through a packet socket.",
    actors=(Actor.PROVIDER, Actor.NEIGHBOUR),
    recognised="by source port or a token in the payload",
    control="the same packets with the same routes, without the lock",
    run=run,
    families=(4,),
    tools=("dnsmasq", "dhclient", "timeout"),
)
