# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads server entries: pure, and run only by `unprivileged.py`.

An entry is a line: the hexadecimal digits of "ip webport websecret webcert {json}", four old fields and a JSON object.
One line that the core cannot decode ends its import, so such lines are left out of what it gets.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from psiphon_vpn.core.options import TUNNEL_PROTOCOLS

MAX_LINE: Final = 65_000
"""Characters. The core gives up at a line of 65,536 (bufio.MaxScanTokenSize)."""
MAX_ENTRIES: Final = 200_000
_HEX: Final = re.compile(rb"(?:[0-9A-Fa-f]{2})+")
REGION: Final = re.compile(r"[A-Z]{2}")
_MASKS: Final = ("-PASSTHROUGH-v2", "-PASSTHROUGH")
"""Parts of a capability's name that only keep old clients away."""


@dataclass(frozen=True, kw_only=True)
class ListSummary:
    """What is in a list.

    Attributes:
        entries: servers, each address counted once.
        by_region: servers by country (ISO 3166-1 alpha-2); servers without a region are left out.
        by_protocol: servers by protocol of the core; a server counts for each of its own.
        duplicates: further entries with an address that was there already.
        unreadable: lines that are no entry.
    """

    entries: int
    by_region: Mapping[str, int]
    by_protocol: Mapping[str, int]
    duplicates: int
    unreadable: int


def _name_capability(protocol: str) -> str:
    """The capability that stands for a protocol: without "-OSSH" at the end, except in the names of in-proxy ones."""
    return protocol if protocol.startswith("INPROXY-") else protocol.removesuffix("-OSSH")


_PROTOCOLS: Final = {_name_capability(protocol): protocol for protocol in TUNNEL_PROTOCOLS} | {
    "QUICv1": "QUIC-OSSH",
}


def work(_argv: Sequence[str], content: bytes) -> bytes:
    """Read entries for `run_unprivileged`: the summary, and the numbers of the lines that are no entry, as JSON."""
    summary, bad = read_entries(content.split(b"\n"))
    return json.dumps(
        {
            "entries": summary.entries,
            "by_region": dict(summary.by_region),
            "by_protocol": dict(summary.by_protocol),
            "duplicates": summary.duplicates,
            "bad": bad,
        }
    ).encode()


def read_entries(lines: Iterable[bytes]) -> tuple[ListSummary, list[int]]:
    """Read lines of entries.

    Returns:
        The summary, and the numbers, from 0, of the lines that are no entry. Empty lines are neither.
    """
    seen: set[str] = set()
    bad: list[int] = []
    regions: Counter[str] = Counter()
    protocols: Counter[str] = Counter()
    duplicates = 0
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        entry = read_entry(line)
        if entry is None or len(seen) >= MAX_ENTRIES:
            bad.append(number)
            continue
        address = str(entry["ipAddress"])
        if address in seen:
            duplicates += 1
            continue
        seen.add(address)
        region = entry.get("region")
        if isinstance(region, str) and REGION.fullmatch(region):
            regions[region] += 1
        protocols.update(_list_protocols(entry.get("capabilities")))
    summary = ListSummary(
        entries=len(seen),
        by_region=dict(sorted(regions.items())),
        by_protocol=dict(sorted(protocols.items())),
        duplicates=duplicates,
        unreadable=len(bad),
    )
    return summary, bad


def read_entry(line: bytes) -> dict[str, object] | None:
    """The JSON object of one entry, with a valid "ipAddress"; None if the line is no entry."""
    line = line.rstrip(b"\r")
    if len(line) > MAX_LINE or not _HEX.fullmatch(line):
        return None
    fields = bytes.fromhex(line.decode("ascii")).split(b" ", 4)
    if len(fields) != 5:
        return None
    try:
        entry = json.loads(fields[4].decode())
        ipaddress.ip_address(entry["ipAddress"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    # A number is an address too for Python.
    return entry if isinstance(entry, dict) and isinstance(entry["ipAddress"], str) else None


def _list_protocols(capabilities: object) -> set[str]:
    found = set()
    for capability in capabilities if isinstance(capabilities, list) else ():
        if isinstance(capability, str):
            plain = capability.replace(_MASKS[0], "").replace(_MASKS[1], "")
            if (protocol := _PROTOCOLS.get(plain)) is not None:
                found.add(protocol)
    return found
