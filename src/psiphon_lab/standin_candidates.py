# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Chooses the servers to which the stand-in core connects, their order, and the protocol. Pure; follows the real core.

A region or a limit of protocols that fits no server leaves no candidate. The server of the last tunnel comes first, the
others shortly after it. The next round tries those that have not answered again, with their next protocol.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from psiphon_lab.server_entry import ServerEntry, decode_server_entry


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A server, and those of its protocols that may be used: at least one."""

    entry: ServerEntry
    protocols: tuple[str, ...]

    def pick_protocol(self, turn: int) -> str:
        """The protocol for a round."""
        return self.protocols[turn % len(self.protocols)]


def read_server_list(text: str) -> list[ServerEntry]:
    """The entries of a list, one per line. Skips those of other servers, as the real core skips unusable ones."""
    entries: dict[str, ServerEntry] = {}
    for line in text.split():
        try:
            entry = decode_server_entry(line)
        except ValueError:
            continue
        entries[entry.address] = entry
    return list(entries.values())


def find_candidates(entries: Iterable[ServerEntry], *, region: str, limit: Sequence[str]) -> list[Candidate]:
    """The servers that fit. region: "" for any. limit: names of protocols, empty for any."""
    candidates: list[Candidate] = []
    for entry in entries:
        protocols = tuple(name for name in entry.ports if not limit or name in limit)
        if protocols and region in ("", entry.region):
            candidates.append(Candidate(entry=entry, protocols=protocols))
    return candidates


def order_candidates(candidates: Sequence[Candidate], *, last: ServerEntry | None) -> list[Candidate]:
    """Sort the server of the last tunnel to the front."""
    return sorted(candidates, key=lambda candidate: candidate.entry != last)


def list_regions(entries: Iterable[ServerEntry], *, limit: Sequence[str]) -> list[str]:
    """The regions for which there are servers, as AvailableEgressRegions has them."""
    return sorted({candidate.entry.region for candidate in find_candidates(entries, region="", limit=limit)})
