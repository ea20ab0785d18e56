# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A12: the local network claims addresses that are not local (TunnelCrack)."""

from __future__ import annotations

from psiphon_lab import addresses as plan
from psiphon_lab.addresses import LAN_A
from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.model import Actor
from psiphon_lab.leaktest.trial import Trial
from psiphon_lab.probe import TARGETS, TCP, UDP
from psiphon_lab.sending import BOTH, ECHO, WEB, probe, volley

# Addresses that make the internet's page and the tunnel server "local".
SPANNING = (("-4", "203.0.113.99/24"), ("-4", "198.51.100.99/24"), ("-6", "2001:db8:ffff::99/64"),
            ("-6", "2001:db8:5::99/64"))  # fmt: skip


def run(trial: Trial) -> None:
    """Give the card addresses of networks that span the internet, as DHCP could; then send to what seems local."""
    wire = LAN_A.interface
    # The core may look for its server as a neighbour on the link; nothing else may look for anything.
    trial.claimed += ["198.51.100.99/32", f"{plan.SERVER4}/32"]
    for version, cidr in SPANNING:
        dad = ["nodad"] if version == "-6" else []
        trial.run("ip", version, "addr", "add", cidr, "dev", wire, *dad)
        trial.undo("ip", version, "addr", "del", cidr, "dev", wire)
    # The far end is not on the link. Neighbour entries with the router's address lead there, as a spoofer would do.
    router = trial.client.run(["ip", "neigh", "show", LAN_A.router4], check=False).stdout.split()
    mac = router[router.index("lladdr") + 1] if "lladdr" in router else "02:00:00:00:00:01"
    for address in (plan.INTERNET4, plan.INTERNET6, plan.SERVER4, plan.SERVER6):
        trial.run("ip", "neigh", "replace", address, "lladdr", mac, "dev", wire)
        trial.undo("ip", "neigh", "del", address, "dev", wire)
    volley(trial, "to what seems local")
    for family in (4, 6):
        for by in BOTH:
            for kind, port in ((TCP, WEB), (TCP, plan.SERVER_PORT), (UDP, ECHO)):
                trial.fire(probe, by=by, family=family, name=f"{kind} {port} to the server ipv{family} {by}",
                           kind=kind, target=TARGETS["server"][family], port=port)  # fmt: skip


ATTACK = Attack(
    id="A12",
    name="a local network that spans the internet",
    reference="TunnelCrack: CVE-2023-36672 (LocalNet), CVE-2023-35838 (ServerIP)",
    summary="The local network claims that public addresses are its own, or that a page has the VPN server's address. "
    "A VPN that excludes the local network or its server's address from the tunnel would send that traffic in clear.",
    actors=(Actor.PROVIDER,),
    recognised="by source port or a token in the payload",
    control="the same packets on the same network without the lock",
    run=run,
    disturbs=True,
)
