# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Which bridges this machine may talk to now: root's list, and what is on each bridge. Pure, except for the file.

The list belongs to root and is no part of the configuration, which the service's own user can write. A listed bridge
is in force only while nothing but guests is on it and the bridge guard is loaded. This check is the second layer: the
guard stops everything at a port that leads out, from the first frame on (`guards.build_bridge_guard`).
"""

from __future__ import annotations

import enum
import ipaddress
import logging
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from psiphon_vpn.i18n import _
from psiphon_vpn.network.uplink import Interface, Snapshot, find_stack
from psiphon_vpn.policy.guests import GUEST_KINDS, GuestBridge, may_hold_guests
from psiphon_vpn.policy.values import InterfaceName, show_name
from psiphon_vpn.stored_files import StoredError, read_stored

log = logging.getLogger(__name__)

FILE_NAME: Final = "bridges"
MAX_BRIDGES: Final = 16
MAX_SIZE: Final = 16 * 1024
HEADING: Final = "# Bridges whose guests this machine may talk to, one a line. Written by 'psiphon-vpn bridge'.\n"
_BRIDGE: Final = "bridge"


class BridgeStatus(enum.StrEnum):
    """Whether a bridge that root allowed is in force, and if not, why. The value appears in the status."""

    IN_FORCE = "in_force"
    ABSENT = "absent"
    NO_BRIDGE = "no_bridge"
    UNGUARDED = "unguarded"
    UNSUPPORTED = "unsupported"
    ROUTED = "routed"
    LEADS_OUT = "leads_out"
    NO_NETWORK = "no_network"
    OVERLAPS = "overlaps"


@dataclass(frozen=True, kw_only=True)
class AllowedBridge:
    """A bridge of the list.

    Attributes:
        detail: the interface that is the reason, if there is one.
        bridge: the value for the rules; only if the bridge is in force.
    """

    name: InterfaceName
    status: BridgeStatus
    detail: str = ""
    bridge: GuestBridge | None = None


def parse_bridges(content: bytes) -> tuple[InterfaceName, ...]:
    """The names in the list, one a line; # begins a comment. Names of another form are left out and logged."""
    found: list[InterfaceName] = []
    for line in content.decode("utf-8", "replace").splitlines():
        word = line.partition("#")[0].strip()
        if not word:
            continue
        name = InterfaceName.of(word)
        if name is None or len(found) >= MAX_BRIDGES:
            log.warning("the list of bridges has a name that no rule can have, or more than %d", MAX_BRIDGES)
        elif name not in found:
            found.append(name)
    return tuple(found)


def render_bridges(names: tuple[InterfaceName, ...]) -> str:
    """The list as it is stored."""
    return HEADING + "".join(f"{name}\n" for name in names)


def load_bridges(path: Path) -> tuple[InterfaceName, ...]:
    """The names in the list; none if there is no list, or if anybody but root could have written it.

    Never raises: errors are logged, and fewer bridges are allowed.
    """
    try:
        found = path.lstat()
        if found.st_uid != 0 or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            log.warning("%s is not root's alone: no bridge is allowed", path)
            return ()
        return parse_bridges(read_stored(path, high=MAX_SIZE))
    except FileNotFoundError:
        return ()
    except (OSError, StoredError) as error:
        log.warning("%s cannot be read, so no bridge is allowed: %s", path, error)
        return ()


def judge_bridges(
    snapshot: Snapshot,
    names: tuple[InterfaceName, ...],
    *,
    outbound: frozenset[int],
    guarded: bool,
    supported: bool = True,
) -> tuple[AllowedBridge, ...]:
    """Judge each bridge of the list.

    Args:
        snapshot: the links.
        names: root's list.
        outbound: indexes of the interfaces that lead out, or did (`uplink.find_outbound`).
        guarded: whether the bridge guard is loaded, and belongs to its holder.
        supported: whether this kernel and its nft can load one.
    """
    if not supported:
        return tuple(AllowedBridge(name=name, status=BridgeStatus.UNSUPPORTED) for name in names)
    return tuple(_judge(snapshot, name, outbound, guarded=guarded) for name in names)


def list_in_force(allowed: tuple[AllowedBridge, ...]) -> tuple[GuestBridge, ...]:
    """The bridges in force, by index."""
    return tuple(sorted((item.bridge for item in allowed if item.bridge is not None), key=lambda item: item.index))


def _judge(snapshot: Snapshot, name: InterfaceName, outbound: frozenset[int], *, guarded: bool) -> AllowedBridge:
    link = next((link for link in snapshot.interfaces if link.name == name), None)
    if link is None:
        return AllowedBridge(name=name, status=BridgeStatus.ABSENT)
    if link.kind != _BRIDGE:
        return AllowedBridge(name=name, status=BridgeStatus.NO_BRIDGE)
    routed = {route.index for route in snapshot.defaults} | outbound
    ways = [way for way in snapshot.interfaces if way.index in routed]
    if way := next((way for way in ways if link in find_stack(snapshot, way)), None):
        return AllowedBridge(name=name, status=BridgeStatus.ROUTED, detail=way.name)
    if (port := _find_way_out(snapshot, link, routed)) is not None:
        return AllowedBridge(name=name, status=BridgeStatus.LEADS_OUT, detail=port.name)
    addresses = tuple(sorted((item for item in link.on_link if may_hold_guests(item)), key=str))
    if not addresses:
        return AllowedBridge(name=name, status=BridgeStatus.NO_NETWORK)
    if (other := _find_overlap(snapshot, link)) is not None:
        return AllowedBridge(name=name, status=BridgeStatus.OVERLAPS, detail=other.name)
    if not guarded:
        return AllowedBridge(name=name, status=BridgeStatus.UNGUARDED)
    return AllowedBridge(
        name=name, status=BridgeStatus.IN_FORCE, bridge=GuestBridge(index=link.index, addresses=addresses)
    )


def _find_way_out(snapshot: Snapshot, bridge: Interface, routed: set[int]) -> Interface | None:
    """The first interface on a bridge that is no guest's, also behind veth pairs with both ends on this machine."""
    by_index = {link.index: link for link in snapshot.interfaces}
    ports: dict[int, list[Interface]] = {}
    for link in snapshot.interfaces:
        if link.master is not None:
            ports.setdefault(link.master, []).append(link)
    found = {bridge.index}
    fresh = [bridge]
    while fresh:
        here = fresh.pop()
        beyond = {here.master, here.lower if here.kind == "veth" else None}
        near = (by_index.get(index) for index in sorted(index for index in beyond if index is not None))
        for other in (*ports.get(here.index, []), *near):
            if other is None or other.index in found:
                continue
            if other.kind not in {_BRIDGE, *GUEST_KINDS} or other.index in routed:
                return other
            found.add(other.index)
            fresh.append(other)
    return None


def _find_overlap(snapshot: Snapshot, bridge: Interface) -> Interface | None:
    """Another interface with a network or a gateway in one of the bridge's networks: addresses would be ambiguous."""
    own = [address.network for address in bridge.on_link if not address.network.is_link_local]
    for link in snapshot.interfaces:
        if link.index == bridge.index:
            continue
        theirs = [address.network for address in link.on_link if not address.network.is_link_local]
        gateways = [
            ipaddress.ip_address(route.gateway)
            for route in snapshot.defaults
            if route.gateway and route.index == link.index
        ]
        for network in own:
            # Networks of different versions never overlap.
            if any(other.version == network.version and _overlap(network, other) for other in theirs):
                return link
            if any(gateway in network for gateway in gateways):
                return link
    return None


def _overlap(
    one: ipaddress.IPv4Network | ipaddress.IPv6Network, other: ipaddress.IPv4Network | ipaddress.IPv6Network
) -> bool:
    low, high = (int(one.network_address), int(one.broadcast_address))
    return low <= int(other.broadcast_address) and int(other.network_address) <= high


def explain_bridge_status(allowed: AllowedBridge) -> tuple[str, str]:
    """What the status means and what to do next, for users."""
    other = show_name(allowed.detail)
    nothing = _("Nothing to do.")
    return {
        BridgeStatus.IN_FORCE: (_("this computer and the guests on it reach each other"), nothing),
        BridgeStatus.ABSENT: (_("there is no such interface now"), _("It counts as soon as it is there.")),
        BridgeStatus.NO_BRIDGE: (
            _("it is no bridge"),
            _("Take it back: sudo psiphon-vpn bridge deny {name}").format(name=allowed.name),
        ),
        BridgeStatus.UNGUARDED: (
            _("withdrawn: the bridge guard is not loaded"),
            _("Load it again: sudo systemctl reload-or-restart psiphon-guard"),
        ),
        BridgeStatus.UNSUPPORTED: (
            _("withdrawn: this kernel or its nftables cannot guard the ports of a bridge"),
            _("This needs a kernel with nf_tables for bridges and for owned tables (Linux 5.12), and nftables 1.0."),
        ),
        BridgeStatus.ROUTED: (
            _("withdrawn: {other} leads out over it").format(other=other),
            _("A bridge that carries an uplink cannot be allowed. Give guests a bridge of their own."),
        ),
        BridgeStatus.LEADS_OUT: (
            _("withdrawn: {other} is on it and leads out").format(other=other),
            _("Take it off the bridge: sudo ip link set {other} nomaster").format(other=other),
        ),
        BridgeStatus.NO_NETWORK: (
            _("withdrawn: this computer has no address of a private network on it"),
            _("Give the bridge an address of 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 or fc00::/7."),
        ),
        BridgeStatus.OVERLAPS: (
            _("withdrawn: {other} has the same network").format(other=other),
            _("Give the guests another network."),
        ),
    }[allowed.status]
