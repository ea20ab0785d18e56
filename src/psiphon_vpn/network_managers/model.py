"""What the service has to know of a network manager, as one value. Pure but for `find_portal`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class NetworkManager:
    """A program that brings interfaces up, gives them addresses, or logs in to networks.

    Attributes:
        name: as people know it.
        units: what systemd starts of it. Each gets a drop-in that requires the boot lock, so that without it interfaces
            stay down.
        users: who speaks DHCP for it, besides root.
        logins: names of its processes (proc(5), comm) that log in to networks.
        cable_logins: those of them that are for cables alone.
        files: what it reads of ours, so that it ignores the TUN, routes and rules: the path on the machine, and the
            file of `resources/`.
        reread: how its first unit reads them again, a verb of systemctl(1); None where it reads nothing of ours.
        released_files: what counts instead of a file in /usr/lib on a machine that was released: the path in /run, and
            the file of `resources/`.
        leases: its directories that hold addresses and names of networks, which no report may show.
        networks: its directories with a file for each network, by whose name, and by what in it, networks are called.
        encoded_networks: those with files that are called as networks are, in digits where no file may be called so
            (iwd.network(5)).
        find_portal: whether the network told it of a sign-in page (RFC 8910), by the interface's index; None where it
            does not tell. Nothing may be sent to find out: it would be in clear, outside the tunnel.
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
