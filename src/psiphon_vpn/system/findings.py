"""Other firewalls and network programs on this machine: left working, and reported with what it means for them."""

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
    """One of them.

    Attributes:
        name: as people know it.
        meaning: what it means that both are here, a sentence.
    """

    name: str
    meaning: str


def _filters() -> str:
    return _("It keeps working; what either of the two refuses is refused. Its rules cannot open the lock.")


def _forwards() -> str:
    return _(
        "It keeps running; its containers and machines reach the internet through the tunnel or not at all, "
        "and nobody outside reaches them. This computer and they do not reach each other: it answers none of them, "
        "not with an address (DHCP) either, nor with names."
    )


def _flushes() -> str:
    return _(
        "It keeps working; when it loads its rules anew it removes ours for a moment. The wire guard holds "
        "meanwhile, and the service puts the rest back."
    )


@dataclass(frozen=True, kw_only=True)
class _Known:
    name: str
    units: tuple[str, ...]
    traces: tuple[str, ...]
    """Tables or chains of theirs, as `nft list` prints them."""
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
    """Who else is here, by running units and by traces in the kernel. Never raises."""
    units = {unit for known in _KNOWN for unit in known.units if manager.is_active(unit)}
    try:
        listing = run(["nft", "list", "tables"]).stdout + run(["nft", "list", "chains"]).stdout
    except CommandError:
        listing = ""
    return match_other_firewalls(units, listing)


def find_ownerless_links(*, listing: str | None = None) -> tuple[Finding, ...]:
    """Devices over which the service will never open (`network/uplink.py`). Never raises.

    Args:
        listing: what `ip -o link show type macsec` says, asked where it is not given.
    """
    if listing is None:
        try:
            listing = run(["ip", "-o", "link", "show", "type", "macsec"]).stdout
        except CommandError:
            listing = ""
    names_found = [line.split(":")[1].strip().partition("@")[0] for line in listing.splitlines() if line.count(":") > 1]
    meaning = _(
        "What goes out by it is encrypted by the kernel, which no longer tells whose packets they are then: the lock "
        "cannot tell them apart, and stays closed on this network."
    )
    return tuple(Finding(name=f"MACsec ({show_name(name)})", meaning=meaning) for name in names_found)


def describe_refused_logins(reads: Reads | None = None) -> tuple[Finding, ...]:
    """Programs that log in to a network and are not root's, so that the guards refuse what they send. Never raises."""
    meaning = _(
        "It does not run as root, so the lock lets nothing of it by on a cable: a network that asks for a login there "
        "(802.1X) no longer lets this computer in. Most wireless cards log in another way and are not affected. "
        "Let it run as root before."
    )
    return tuple(Finding(name=f"{login.name} ({login.pid})", meaning=meaning) for login in find_refused_logins(reads))


def match_other_firewalls(units: Iterable[str], listing: str) -> tuple[Finding, ...]:
    """Who is here.

    Args:
        units: that run.
        listing: what nft says about tables and chains.
    """
    running = set(units)
    lines = [line.strip() for line in listing.splitlines()]
    return tuple(
        Finding(name=known.name, meaning=known.meaning())
        for known in _KNOWN
        if running & set(known.units) or any(line.startswith(trace) for line in lines for trace in known.traces)
    )


def find_name_taker(uid: int | None, *, devices: Path = Path("/sys/class/net")) -> Finding | None:
    """Another program's network device that has the name of the tunnel's. Never raises.

    Args:
        uid: psiphon-user, if there is one.
        devices: where the kernel tells of them; the owner of a TUN among what it tells (tun.c, owner_show).
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
            "The service removes it, since it needs the name for its own. To keep it, give it another name first: "
            "sudo ip link set {name} name other0"
        ).format(name=names.TUN_NAME),
    )
