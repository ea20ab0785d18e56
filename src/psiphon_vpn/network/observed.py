# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The network as one value: the daemon hands it to the state machine, and `diagnose` judges by it. Pure."""

from dataclasses import dataclass, field

from psiphon_vpn.network.bridges import AllowedBridge, list_in_force
from psiphon_vpn.network.uplink import (
    Snapshot,
    Uplink,
    find_cards,
    find_conflicts,
    find_container_interfaces,
    find_headerless,
    find_neighbourhood,
    find_odd_wires,
    find_ownerless_uplink,
    find_tunnelled_uplink,
    find_vrf_uplink,
    find_wires,
    has_odd_uplink,
    list_uplinks,
)
from psiphon_vpn.policy.derive import Network


@dataclass(frozen=True, kw_only=True)
class ObservedNetwork:
    """The network at one moment.

    Attributes:
        network: what the policy is derived from.
        uplinks: every possible uplink, the best first.
        bridges: the bridges that root allowed, each with its status.
        cards: names of the machine's cards; only to be shown.
        odd_wires: names of wires that no rule can contain; to be shown, and for the filters of traffic control.
        odd_uplink: whether an uplink is left out because of its name.
        ownerless_uplink: an uplink that is left out because its packets have no owner; only to be shown.
        tunnelled_uplink: an uplink that is left out because a tunnel of the kernel's carries it; only to be shown.
        vrf_uplink: an interface that may lead out, but whose routes are a VRF's; only to be shown.
        conflicts: interfaces whose network has the tunnel's own addresses.
    """

    network: Network = field(default_factory=Network)
    uplinks: tuple[Uplink, ...] = ()
    bridges: tuple[AllowedBridge, ...] = ()
    cards: tuple[str, ...] = ()
    odd_wires: tuple[str, ...] = ()
    odd_uplink: bool = False
    ownerless_uplink: str | None = None
    tunnelled_uplink: str | None = None
    vrf_uplink: str | None = None
    conflicts: tuple[str, ...] = ()


def observe(
    snapshot: Snapshot, *, outbound: frozenset[int], bridges: tuple[AllowedBridge, ...] = ()
) -> ObservedNetwork:
    """Derive it from a snapshot.

    Args:
        snapshot: the links.
        outbound: indexes of the interfaces that lead out, or did (`uplink.find_outbound`).
        bridges: the bridges that root allowed, each with its status (`bridges.judge_bridges`).
    """
    return ObservedNetwork(
        network=Network(
            wires=find_wires(snapshot, outbound),
            container_interfaces=find_container_interfaces(snapshot, outbound),
            headerless=find_headerless(snapshot, outbound),
            on_link=find_neighbourhood(snapshot, outbound),
            bridges=list_in_force(bridges),
        ),
        uplinks=list_uplinks(snapshot),
        bridges=bridges,
        cards=find_cards(snapshot),
        odd_wires=find_odd_wires(snapshot, outbound),
        odd_uplink=has_odd_uplink(snapshot),
        ownerless_uplink=find_ownerless_uplink(snapshot),
        tunnelled_uplink=find_tunnelled_uplink(snapshot),
        vrf_uplink=find_vrf_uplink(snapshot),
        conflicts=find_conflicts(snapshot),
    )
