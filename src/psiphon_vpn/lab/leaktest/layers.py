"""Which layer stopped what: the counters of the rules that refuse, before and after. Pure but for the reading."""

from __future__ import annotations

import re
from collections.abc import Mapping

from psiphon_vpn.lab.namespace import Host

_COUNTER = re.compile(r"counter packets (\d+) bytes \d+ (drop|reject|goto refused)")
LAYERS = {
    ("psiphon_filter", "refused"): "base table: output",
    ("psiphon_filter", "to_tunnel"): "base table: TUN filter",
    ("psiphon_filter", "output"): "base table: output",
    ("psiphon_filter", "to_wire"): "base table: output",
    ("psiphon_filter", "input"): "base table: input",
    ("psiphon_filter", "forward"): "base table: forward",
    ("psiphon_filter", "postrouting"): "base table: postrouting",
    ("psiphon_guard", "output"): "wire guard: output",
    ("psiphon_guard", "forward"): "wire guard: forward",
    ("psiphon_guard", "postrouting"): "wire guard: postrouting",
    ("psiphon_arp", "input"): "ARP table",
    ("psiphon_arp", "output"): "ARP table",
}
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
            if table.startswith("psiphon_"):
                layer = LAYERS.get((table, chain)) or f"egress guard ({table.removeprefix('psiphon_')})"
                found[layer] = found.get(layer, 0) + int(match[1])
    return found


def read_counters(host: Host) -> dict[str, int]:
    """The counters now."""
    return parse_counters(host.run(["nft", "list", "ruleset"], check=False).stdout)


def subtract(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    """What was counted in between. A table that was loaded anew counts from nothing."""
    grown = {
        layer: count - before.get(layer, 0) if count >= before.get(layer, 0) else count
        for layer, count in after.items()
    }
    return {layer: count for layer, count in grown.items() if count > 0}
