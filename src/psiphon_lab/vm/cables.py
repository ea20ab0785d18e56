# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The cables of a virtual computer: taps on the client's host, each joined with a cable of the world.

Traffic control passes each frame on as it is, in both directions (tc-mirred(8)); a bridge would keep some for itself,
and send some of its own. The client's host adds nothing: its ends have no address, and IPv6 is off on it.
"""

from __future__ import annotations

from dataclasses import dataclass

from psiphon_lab.addresses import Lan
from psiphon_lab.namespace import Host


@dataclass(frozen=True, kw_only=True)
class Card:
    """A network card of a virtual computer. tap: its other end on the client's host; mac: its address."""

    tap: str
    mac: str


def prepare_client(client: Host) -> None:
    """Keep the client's host from sending anything of its own."""
    client.set_sysctls({"ipv6/conf/all/disable_ipv6": 1, "ipv6/conf/default/disable_ipv6": 1})


def add_tap(client: Host, card: Card) -> None:
    """Make a card's tap, which stays while QEMU is off."""
    client.run(["ip", "tuntap", "add", "dev", card.tap, "mode", "tap"])
    client.run(["ip", "link", "set", card.tap, "up"])


def join(client: Host, card: Card, lan: Lan) -> None:
    """Put a card's cable into a provider's socket, and take it out of any other."""
    for end in (card.tap, lan.interface):
        client.run(["tc", "qdisc", "del", "dev", end, "clsact"], check=False)
        client.run(["tc", "qdisc", "add", "dev", end, "clsact"])
        client.run(["ip", "link", "set", end, "up"])
    for here, there in ((card.tap, lan.interface), (lan.interface, card.tap)):
        client.run(
            ["tc", "filter", "add", "dev", here, "ingress", "protocol", "all", "u32", "match", "u32", "0", "0",
             "action", "mirred", "egress", "redirect", "dev", there]
        )  # fmt: skip
