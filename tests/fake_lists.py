# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Fake server lists for tests of the code above them: hosts, and what happens to a file, as the test decides."""

from __future__ import annotations

from dataclasses import dataclass, field

from psiphon_vpn.servers.list_hosts import ListHost


@dataclass
class FakeLists:
    """Hosts that have a list, and the files that were accepted."""

    hosts: tuple[ListHost, ...] = ()
    new: bool = True
    accepted: list[bytes] = field(default_factory=list)

    def find_hosts(self, profile: str) -> tuple[ListHost, ...]:
        """The same for every profile."""
        return self.hosts

    def accept(self, content: bytes, profile: str) -> bool:
        """Accept any file."""
        self.accepted.append(content)
        return self.new


class NoLists(FakeLists):
    """No host has a list."""
