# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Other firewalls, network programs and interfaces that concern the lock: reported with their meaning, not changed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from psiphon_vpn.i18n import _
from psiphon_vpn.policy import names
from psiphon_vpn.policy.values import show_name
from psiphon_vpn.run import CommandError, run
from psiphon_vpn.system.logins import Reads, find_refused_logins
from psiphon_vpn.system.platform import ServiceManager


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something on this machine that concerns the lock.

    Attributes:
        name: as people know it.
        meaning: a sentence about what it means together with this service.
    """

    name: str
    meaning: str


def _filters() -> str:
    return _("It keeps working; what either of the two refuses is refused. Its rules cannot open the lock.")


def _forwards() -> str:
    return _(
        "It keeps running; its containers and machines reach the internet through the tunnel or not at all, "
        "and nobody outside reaches them. This computer and they do not reach each other: it gives them neither an "
        "address (DHCP) nor names."
    )


def _flushes() -> str:
    return _(
        "It keeps working; when it loads its rules again it removes this service's rules briefly. The wire guard holds "
        "meanwhile, and the service puts the rest back."
    )


@dataclass(frozen=True, kw_only=True)
class _Known:
    name: str
    units: tuple[str, ...]
    traces: tuple[str, ...]
    """Its tables or chains, as `nft list` prints them."""
    meaning: Callable[[], str]


_KNOWN = (
    _Known(name="firewalld", units=("firewalld.service",), traces=("table inet firewalld",), meaning=_filters),
    _Known(name="ufw", units=("ufw.service",), traces=("chain ufw-",), meaning=_filters),
    _Known(
        name="docker", units=("docker.service",), traces=("chain DOCKER", "table ip docker-bridges"), meaning=_forwards
    ),
    _Known(
        name="libvirt",
        units=("libvirtd.service", "virtnetworkd.service"),
        traces=("table ip libvirt_network", "chain LIBVIRT_"),
        meaning=_forwards,
    ),
    _Known(
        name="LXD",
        units=("lxd.service", "snap.lxd.daemon.service"),
        traces=("table inet lxd", "chain fwd.lxdbr"),
        meaning=_forwards,
    ),
    _Known(name="Incus", units=("incus.service",), traces=("table inet incus", "chain fwd.incusbr"), meaning=_forwards),
    _Known(name="podman", units=(), traces=("table inet netavark", "chain NETAVARK"), meaning=_forwards),
    _Known(name="nftables.service", units=("nftables.service",), traces=(), meaning=_flushes),
)


def find_other_firewalls(manager: ServiceManager) -> tuple[Finding, ...]:
    """Other firewalls, by running units and by traces in the kernel. Never raises."""
    units = {unit for known in _KNOWN for unit in known.units if manager.is_active(unit)}
    try:
        listing = run(["nft", "list", "tables"]).stdout + run(["nft", "list", "chains"]).stdout
    except CommandError:
        listing = ""
    return match_other_firewalls(units, listing)


def find_ownerless_links(*, listing: str | None = None) -> tuple[Finding, ...]:
    """Interfaces over which the service never opens (`network/uplink.py`). Never raises.

    Args:
        listing: output of `ip -o link show type macsec`; None to run it.
    """
    if listing is None:
        try:
            listing = run(["ip", "-o", "link", "show", "type", "macsec"]).stdout
        except CommandError:
            listing = ""
    names_found = [line.split(":")[1].strip().partition("@")[0] for line in listing.splitlines() if line.count(":") > 1]
    meaning = _(
        "The kernel encrypts what leaves by it, and then no longer says which user a packet belongs to: the lock "
        "cannot let anything pass, and stays closed on this network."
    )
    return tuple(Finding(name=f"MACsec ({show_name(name)})", meaning=meaning) for name in names_found)


def describe_refused_logins(reads: Reads | None = None) -> tuple[Finding, ...]:
    """Programs that log in to a network without being root, so that the guards refuse their frames. Never raises."""
    meaning = _(
        "It does not run as root, so the lock stops its frames on a cable: a network that asks for a login there "
        "(802.1X) no longer lets this computer in. Most wireless cards log in another way and are not affected. "
        "Let it run as root first."
    )
    return tuple(Finding(name=f"{login.name} ({login.pid})", meaning=meaning) for login in find_refused_logins(reads))


def match_other_firewalls(units: Iterable[str], listing: str) -> tuple[Finding, ...]:
    """Other firewalls.

    Args:
        units: units that run.
        listing: nft's listings of tables and chains.
    """
    running = set(units)
    lines = [line.strip() for line in listing.splitlines()]
    return tuple(
        Finding(name=known.name, meaning=known.meaning())
        for known in _KNOWN
        if running & set(known.units) or any(line.startswith(trace) for line in lines for trace in known.traces)
    )


def find_name_taker(uid: int | None, *, devices: Path = Path("/sys/class/net")) -> Finding | None:
    """Another program's network device with the name of the TUN. Never raises.

    Args:
        uid: psiphon-user, if it exists.
        devices: the kernel's directory of network devices; it names a TUN's owner (tun.c, owner_show).
    """
    device = devices / names.TUN_NAME
    if not os.path.lexists(device):
        return None
    with contextlib.suppress(OSError, ValueError):
        if uid is not None and int((device / "owner").read_text(encoding="ascii")) == uid:
            return None
    return Finding(
        name=_("another program's network device called {name}").format(name=names.TUN_NAME),
        meaning=_(
            "The service removes it, since it needs the name for its own device. To keep it, rename it first: "
            "sudo ip link set {name} name other0"
        ).format(name=names.TUN_NAME),
    )
