# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Redirects and mirrors to a card with traffic control (tc-mirred(8)), and sends shots into them."""

from __future__ import annotations

from psiphon_lab import addresses as plan
from psiphon_lab.addresses import LAN_A
from psiphon_lab.leaktest.model import EGRESS, Actor
from psiphon_lab.leaktest.trial import Trial
from psiphon_lab.probe import TARGETS
from psiphon_lab.sending import DISCARD, send_datagram, send_frame
from psiphon_lab.service_adapter.names import TUN_NAME

WIRE = LAN_A.interface
PROTOCOLS = (("ip", "ip", "1"), ("ipv6", "ip6", "2"))


def redirect_container(trial: Trial) -> None:
    """Redirect a container's packets to the card as they come in, as some container networks do."""
    trial.run("tc", "qdisc", "add", "dev", "ctr0", "ingress", check=True)
    trial.undo("tc", "qdisc", "del", "dev", "ctr0", "ingress")
    for protocol, _, priority in PROTOCOLS:
        trial.run("tc", "filter", "add", "dev", "ctr0", "parent", "ffff:", "protocol", protocol, "prio", priority,
                  "u32", "match", "u32", "0", "0", "action", "mirred", "egress", "redirect", "dev", WIRE,
                  check=True)  # fmt: skip


def mirror(trial: Trial, device: str, *, check: bool) -> None:
    """Send the card a copy of what leaves a device for one port. Everything else is unchanged."""
    trial.run("tc", "qdisc", "add", "dev", device, "clsact", check=check)
    trial.undo("tc", "qdisc", "del", "dev", device, "clsact")
    for protocol, words, priority in PROTOCOLS:
        trial.run("tc", "filter", "add", "dev", device, "egress", "protocol", protocol, "prio", priority, "u32",
                  "match", words, "dport", str(DISCARD), "0xffff", "action", "mirred", "egress", "mirror", "dev", WIRE,
                  check=check)  # fmt: skip


def fire_redirected(trial: Trial) -> None:
    """Redirect a container's packets, and mirror those between local programs and those to the internet."""
    redirect_container(trial)
    mirror(trial, "lo", check=True)
    # Without the lock there is no TUN, and packets to the internet leave through the card anyway.
    mirror(trial, TUN_NAME, check=False)
    for family in (4, 6):
        trial.fire(send_datagram, by=Actor.USER, family=family, name=f"mirrored from lo ipv{family}",
                   target="127.0.0.1" if family == 4 else "::1", port=DISCARD)  # fmt: skip
        trial.fire(send_datagram, by=Actor.USER, family=family, name=f"mirrored from the TUN ipv{family}",
                   target=TARGETS["internet"][family], port=DISCARD)  # fmt: skip
        source = plan.CONTAINER4 if family == 4 else plan.CONTAINER6
        trial.fire(send_frame, by=Actor.CONTAINER, family=family, name=f"redirected ipv{family}", interface="eth0",
                   mac="02:50:53:00:0c:02", source=source, target=TARGETS["internet"][family],
                   needs=EGRESS)  # fmt: skip
    trial.settle()
