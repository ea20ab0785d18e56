# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds out which layer stopped what, from the counters of the rules that refuse. Pure except for `read_counters`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from psiphon_lab.namespace import Host
from psiphon_lab.service_adapter.names import LAYERS

_COUNTER = re.compile(r"counter packets (\d+) bytes \d+ (drop|reject|goto refused)")
TABLES: Final = {table.name: table for table in LAYERS}
CHAINS: Final = {"refused": "output", "to_wire": "output", "to_tunnel": "TUN filter"}
"""Names of chains in the report if different: a chain that others jump to counts for the hook before it."""
ROUTING = "routing wall"


def parse_counters(listing: str) -> dict[str, int]:
    """Packets that the rules of each layer refused, from `nft list ruleset`."""
    found: dict[str, int] = {}
    table = chain = ""
    for line in listing.splitlines():
        words = line.split()
        if line.startswith("table "):
            table = words[2]
        elif line.startswith("\tchain "):
            chain = words[1]
        elif match := _COUNTER.search(line):
            if match[2] == "goto refused":
                continue  # counted again where it leads
            if (own := TABLES.get(table)) is not None:
                layer = f"{own.layer}: {CHAINS.get(chain, chain)}" if own.family == "inet" else own.layer
                found[layer] = found.get(layer, 0) + int(match[1])
    return found


def read_counters(host: Host) -> dict[str, int]:
    """Read the counters."""
    return parse_counters(host.run(["nft", "list", "ruleset"], check=False).stdout)


def subtract(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    """The packets counted in between. A table that was loaded again counts from zero."""
    grown = {
        layer: count - before.get(layer, 0) if count >= before.get(layer, 0) else count
        for layer, count in after.items()
    }
    return {layer: count for layer, count in grown.items() if count > 0}
