# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Devices that may lead out of a machine instead of a plain card, and what makes each, in shell for a guest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from psiphon_lab.addresses import LAN_A
from psiphon_vpn.diagnose.checks.routes import BONDS, LACP_MODE

FAR4: Final = "192.0.2.11"
LINE4: Final = "192.0.2.12"
"""The two ends of a tunnel, both of provider A's network: the far end answers for the near one (proxy ARP)."""

ADDRESSES: Final = f"""
    ip link set u0 up
    ip address add {LAN_A.client4}/{LAN_A.prefix4} dev u0
    ip address add {LAN_A.client6}/{LAN_A.prefix6} dev u0 nodad
    ip route add default via {LAN_A.router4} dev u0 proto dhcp metric 100
    ip -6 route add default via {LAN_A.router6} dev u0 proto ra metric 100
"""
NEAR: Final = f"""
    ip link set eth0 up
    ip address add {LAN_A.client4}/{LAN_A.prefix4} dev eth0
"""
THROUGH: Final = f"""
    ip link set u0 up
    ip address add {LINE4}/32 dev u0
    ip route add default dev u0 src {LINE4}
"""
PUT_AWAY: Final = """
    ip link set eth0 down nomaster
    ip link set eth1 down nomaster
    ip link del u0
    ip address flush dev eth0
    ip address flush dev eth1
    ip -n far link del t0
    ip route flush table 10
    true
"""

# The far end of tunnels.
FAR: Final = f"""
    set -e
    ip netns add far
    ip link set eth2 netns far
    ip netns exec far sh -ec '
        sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1 net.ipv4.ip_forward=1
        ip link set lo up
        ip link set eth2 up
        ip address add {FAR4}/{LAN_A.prefix4} dev eth2
        ip route add default via {LAN_A.router4}
        sysctl -qw net.ipv4.conf.eth2.proxy_arp=1'
"""


CARD_LEADS: Final = f"""
    ip link del u0
    ip route replace default via {LAN_A.router4} dev eth0 proto dhcp metric 100
"""
OUT_OF_VRF: Final = f"""
    ip link set dev eth0 nomaster
    ip route replace default via {LAN_A.router4} dev eth0 proto dhcp metric 100
"""


@dataclass(frozen=True, kw_only=True)
class Device:
    """One device, called u0.

    Attributes:
        title: for the page.
        make: what makes it, with its addresses and routes, from cards that are down.
        outer: the protocol of IP that it puts packets into, None if they leave as they are.
        reason: why the service says that it does not open, or "" where it opens.
        cure: the next step that the service then names.
        bound_only: whether programs use it only if they are bound to it.
        needs: a program that makes it.
    """

    title: str
    make: str
    outer: int | None = None
    reason: str = ""
    cure: str = CARD_LEADS
    bound_only: bool = False
    needs: str = "ip"


def _bond(mode: str) -> str:
    return f"""
        ip link add u0 type bond mode {mode} miimon 100
        ip link set eth0 master u0
        ip link set eth1 master u0
        {ADDRESSES}
    """


# `diagnose` looks for this line of the kernel's.
FIND_LACP: Final = f"grep -qxF '{LACP_MODE}' {BONDS}/u0\n"


def _tunnel(make: str, far: str) -> str:
    return f"""
        {NEAR}
        ip -n far link add t0 {far}
        {make}
        ip -n far link set t0 up
        ip -n far route add {LINE4} dev t0
        {THROUGH}
    """


def _packets(kind: str) -> str:
    return _tunnel(
        f"ip link add u0 type {kind} local {LAN_A.client4} remote {FAR4}",
        f"type {kind} local {FAR4} remote {LAN_A.client4}",
    )


DEVICES: Final = {
    "bond": Device(title="a bond of two cards (active-backup)", make=_bond("active-backup")),
    "bond-lacp": Device(
        title="a bond of two cards (802.3ad), whose switch has no LACP", make=_bond("802.3ad") + FIND_LACP
    ),
    "bridge": Device(
        title="a bridge over a card",
        make=f"""
            ip link add u0 type bridge mcast_snooping 0
            ip link set eth0 master u0 up
            {ADDRESSES}
        """,
    ),
    "macvlan": Device(
        title="a macvlan of a card",
        make=f"""
            ip link set eth0 up
            ip link add link eth0 name u0 type macvlan mode bridge
            {ADDRESSES}
        """,
    ),
    "ipvlan": Device(
        title="an ipvlan of a card",
        make=f"""
            ip link set eth0 up
            ip link add link eth0 name u0 type ipvlan mode l2
            {ADDRESSES}
        """,
    ),
    "vrf": Device(
        title="a card in a VRF",
        make=f"""
            ip link add u0 type vrf table 10
            ip link set u0 up
            ip link set eth0 master u0 up
            ip address add {LAN_A.client4}/{LAN_A.prefix4} dev eth0
            ip address add {LAN_A.client6}/{LAN_A.prefix6} dev eth0 nodad
            ip route add default via {LAN_A.router4} dev eth0 table 10
            ip -6 route add default via {LAN_A.router6} dev eth0 table 10
        """,
        reason="uplink_vrf",
        cure=OUT_OF_VRF,
        bound_only=True,
    ),
    "gre": Device(title="a GRE tunnel", make=_packets("gre"), outer=47, reason="uplink_tunnelled"),
    "ipip": Device(title="an IPIP tunnel", make=_packets("ipip"), outer=4, reason="uplink_tunnelled"),
    "wireguard": Device(
        title="WireGuard",
        make=_tunnel(
            f"""
            ip link add u0 type wireguard
            umask 077
            wg genkey >/run/near.key
            wg genkey >/run/far.key
            wg set u0 private-key /run/near.key \\
                peer "$(wg pubkey </run/far.key)" endpoint {FAR4}:51820 allowed-ips 0.0.0.0/0
            ip netns exec far wg set t0 private-key /run/far.key listen-port 51820 \
                peer "$(wg pubkey </run/near.key)" allowed-ips {LINE4}/32
            """,
            "type wireguard",
        ),
        outer=17,
        reason="uplink_tunnelled",
        needs="wg",
    ),
}
