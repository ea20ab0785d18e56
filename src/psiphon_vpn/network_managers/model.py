# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What the service has to know about a network manager, as one value. Pure, except for `find_portal`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class NetworkManager:
    """A program that brings interfaces up, gives them addresses, or logs in to networks.

    Attributes:
        name: its usual name.
        units: its systemd units. Each gets a drop-in that requires the boot lock, so that without it interfaces stay
            down.
        users: users that send its DHCP messages, besides root.
        logins: names of its processes (proc(5), comm) that log in to networks.
        cable_logins: those of them that are for wired networks alone.
        files: configuration files installed for it, so that it ignores the TUN, its routes and rules: path on the
            machine, and file in `resources/`.
        reread: how its first unit reads them again, a verb of systemctl(1); None if there are none.
        released_files: files that replace those in /usr/lib while a machine is released: path in /run, and file in
            `resources/`.
        leases: its directories that hold addresses and names of networks, which no report may show.
        networks: its directories with a file for each network; file names and contents reveal networks' names.
        encoded_networks: directories of files named after networks, in hexadecimal where the name is unsuitable
            (iwd.network(5)).
        find_portal: tells by the interface's index whether the network announced a sign-in page (RFC 8910); None if
            the manager does not record it. Nothing may be sent to find out: it would go in clear, outside the tunnel.
    """

    name: str
    units: tuple[str, ...]
    users: tuple[str, ...] = ()
    logins: tuple[str, ...] = ()
    cable_logins: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict, hash=False)
    reread: Literal["restart", "reload"] | None = None
    released_files: Mapping[str, str] = field(default_factory=dict, hash=False)
    leases: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    encoded_networks: tuple[str, ...] = ()
    find_portal: Callable[[int, Path | None], bool] | None = None
