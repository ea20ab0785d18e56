# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What this kernel and this nft can do: tried in a scratch table and read back, not guessed from versions."""

import os
from dataclasses import dataclass, fields
from pathlib import Path

from psiphon_vpn.linux.disturbance import decide
from psiphon_vpn.linux.loopback import find_plain_name
from psiphon_vpn.linux.scratch import list_owned_scratch, list_scratch
from psiphon_vpn.linux.traffic import can_filter
from psiphon_vpn.policy.missing_parts import Part

TUN_DEVICE = Path("/dev/net/tun")


@dataclass(frozen=True, kw_only=True)
class Features:
    """The mechanisms that the layers rest on.

    Attributes:
        nftables: nft works at all; without it nothing can be locked by rules.
        set_timeout: set elements that the kernel forgets by itself: without them there is no lease, and no opening.
        type_route: other programs' chains may move packets to another interface, after output saw them.
        owner_flag: tables that only their holder can change (Linux 5.12): the wire guard.
        egress_hook: a hook behind everything else (Linux 5.16): the egress guard.
        tun: /dev/net/tun can be opened.
        conntrack: connections are known, and can be marked: without it no answer to the core is accepted.
        traffic_filters: a card's traffic control accepts our filter (`linux/traffic.py`).
        bridge_ports: rules can match the kind of a bridge's port: without it no bridge can be allowed.
        reject, nat, fib, rt: optional parts of the base table (`policy/missing_parts.py`).
    """

    nftables: bool
    set_timeout: bool
    type_route: bool
    owner_flag: bool
    egress_hook: bool
    tun: bool
    conntrack: bool = True
    reject: bool = True
    nat: bool = True
    fib: bool = True
    rt: bool = True
    bridge_ports: bool = True
    traffic_filters: bool = True

    @property
    def lacking(self) -> frozenset[Part]:
        """The optional parts of the base table that are missing."""
        return frozenset(part for part in Part if not getattr(self, part))

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of the missing mechanisms."""
        return tuple(field.name for field in fields(self) if not getattr(self, field.name))


async def _try(family: str, body: str, expected: str) -> bool:
    """Load a scratch table, and look for a text in its listing."""

    async def attempt() -> bool:
        listing = await list_scratch(family, body)
        return listing is not None and expected in listing

    return await decide(attempt)


async def _try_rule(rule: str, expected: str) -> bool:
    """Do the same with one rule of the base table's family."""
    return await _try("inet", f"chain c {{\n{rule}\n}}", expected)


async def _try_egress() -> bool:
    """On loopback, whatever its name: the kernel refuses a chain without an existing interface."""
    name = find_plain_name()
    return name is not None and await _try(
        "netdev", f'chain c {{ type filter hook egress device "{name}" priority 0; }}', "hook egress"
    )


async def _try_owner() -> bool:
    async def attempt() -> bool:
        listing = await list_owned_scratch()
        return listing is not None and "flags owner" in listing

    return await decide(attempt)


def _can_open_tun() -> bool:
    return os.access(TUN_DEVICE, os.R_OK | os.W_OK)


async def probe_features() -> Features:
    """Try each mechanism. Leaves nothing behind.

    Raises:
        CommandError: nft or the kernel could not be asked, several times in a row: what it can do is not known.
    """
    base = "chain c {{ type {} hook output priority 0; }}".format
    return Features(
        nftables=await _try("inet", base("filter"), "hook output"),
        set_timeout=await _try(
            "inet", 'set s {\ntype ifname\nflags timeout\nelements = { "lo" timeout 1m }\n}', "timeout 1m"
        ),
        type_route=await _try("inet", base("route"), "type route"),
        owner_flag=await _try_owner(),
        egress_hook=await _try_egress(),
        tun=_can_open_tun(),
        conntrack=await _try_rule("ct state established ct mark set 1", "mark set"),
        reject=await _try_rule("meta l4proto 6 reject with tcp reset", "reject with tcp reset")
        and await _try_rule("reject with icmpx type admin-prohibited", "admin-prohibited"),
        nat=await _try("inet", "chain c {\ntype nat hook output priority 0;\ndnat ip to 192.0.2.1\n}", "dnat ip to"),
        fib=await _try_rule("fib daddr type != local", "fib daddr type"),
        rt=await _try_rule("rt ip nexthop != 192.0.2.1 drop", "rt ip nexthop")
        and await _try_rule("rt ip6 nexthop != 2001:db8::1 drop", "rt ip6 nexthop"),
        bridge_ports=await _try(
            "bridge",
            'chain c {\ntype filter hook postrouting priority 300;\nmeta oifkind { "veth", "tun" } accept\n}',
            "oifkind",
        ),
        traffic_filters=await decide(can_filter, what="rtnetlink"),
    )
