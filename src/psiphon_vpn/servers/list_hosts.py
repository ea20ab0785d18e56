# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The hosts that have a profile's list: those that prove their name, and its mirrors. Pure.

Mirrors have no certificate for their names, so anybody on the way can answer for them: only the list's signature
counts. Psiphon alone uses their names, so whoever sees one in TLS knows what is asked for: they are asked where nobody
near this machine sees it, which is inside the tunnel. A rescue never asks them.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from psiphon_vpn.servers.hints import PORT
from psiphon_vpn.servers.profile import Profile


@dataclass(frozen=True)
class ListHost:
    """A host that has the list.

    Attributes:
        host: its name, in lower case.
        path: of the list there.
        proves: whether it must have a certificate for its name.
    """

    host: str
    path: str
    proves: bool = True


def find_list_hosts(profile: Profile) -> tuple[ListHost, ...]:
    """The hosts that prove their name."""
    return _find(profile, proves=True)


def find_mirrors(profile: Profile) -> tuple[ListHost, ...]:
    """The others: for the tunnel alone."""
    return _find(profile, proves=False)


def _find(profile: Profile, *, proves: bool) -> tuple[ListHost, ...]:
    """Hosts by https at the usual port, in the profile's order."""
    found: dict[str, ListHost] = {}
    for address in profile.list_urls:
        parts = urlsplit(address.url)
        host = (parts.hostname or "").lower()
        if address.verify_tls is proves and parts.scheme == "https" and host and parts.port in {None, PORT}:
            found.setdefault(host, ListHost(host, parts.path or "/", proves))
    return tuple(found.values())
