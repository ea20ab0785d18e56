# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The policy as a pure function of the service's situation, its identity, the settings and the network.

The daemon and `diagnose` both call it, so that the two cannot disagree about what should be loaded. Impossible
situations cannot be expressed: only `Connected` lets the core use the wire, and it always has an uplink and a TUN.
"""

from dataclasses import dataclass, replace
from typing import Literal, Protocol, assert_never

from psiphon_vpn.policy.guests import GuestBridge
from psiphon_vpn.policy.model import Identity, Links, Policy, State
from psiphon_vpn.policy.onlink import NOTHING, OnLink
from psiphon_vpn.policy.upstream_proxy import find_proxy_endpoint
from psiphon_vpn.policy.values import Address, ControlGroup, InterfaceName, parse_addresses


@dataclass(frozen=True, kw_only=True)
class UplinkFacts:
    """What rules contain of the chosen uplink. The attributes are those of `Links`."""

    name: InterfaceName
    stack: tuple[InterfaceName, ...] = ()
    gateways: tuple[Address, ...] = ()
    dhcp_servers: tuple[Address, ...] = ()
    versions: tuple[int, ...] = (4, 6)


@dataclass(frozen=True, kw_only=True)
class Network:
    """What rules contain of the network, whichever uplink is chosen. The attributes are those of `Links`."""

    wires: tuple[InterfaceName, ...] = ()
    container_interfaces: tuple[InterfaceName, ...] | None = None
    headerless: tuple[InterfaceName, ...] = ()
    on_link: OnLink = NOTHING
    bridges: tuple[GuestBridge, ...] = ()


@dataclass(frozen=True, kw_only=True)
class WithoutTun:
    """Locked, and there is no TUN."""

    state: Literal[State.LOCKED, State.FAILED] = State.LOCKED


@dataclass(frozen=True, kw_only=True)
class Locked:
    """The core may not use the wire.

    Attributes:
        tun: interface index of the TUN.
        uplink: the uplink that would be used: its DHCP lease is renewed meanwhile.
    """

    tun: int
    uplink: UplinkFacts | None = None
    state: Literal[State.LOCKED, State.FAILED] = State.LOCKED


@dataclass(frozen=True, kw_only=True)
class Connected:
    """The core may use the wire; applications go through the TUN while it is open.

    Attributes:
        tun: interface index of the TUN.
        uplink: the uplink that the core is bound to.
    """

    tun: int
    uplink: UplinkFacts
    state: Literal[State.CONNECTING, State.VERIFYING, State.OPEN]


Situation = WithoutTun | Locked | Connected


def build_situation(state: State, *, tun: int, uplink: UplinkFacts | None) -> Situation:
    """The situation of a state.

    Raises:
        ValueError: a core that may use the wire has no uplink out.
    """
    if state is State.LOCKED or state is State.FAILED:
        return Locked(state=state, tun=tun, uplink=uplink)
    if uplink is None:
        raise ValueError(f"{state} without an uplink")
    return Connected(state=state, tun=tun, uplink=uplink)


class Settings(Protocol):
    """The part of the configuration that the policy depends on (`config.Settings`)."""

    @property
    def socks_port(self) -> int:
        """TCP port of the SOCKS proxy on loopback."""

    @property
    def ipv6_probe(self) -> tuple[str, ...]:
        """Addresses of the name servers that the service queries to see whether the tunnel carries IPv6."""

    @property
    def upstream_proxy(self) -> str | None:
        """URL of a proxy on the uplink to the tunnel server."""

    @property
    def bootstrap_dns(self) -> tuple[str, ...]:
        """Addresses of the resolvers that the core may query outside the tunnel."""


def derive(
    situation: Situation,
    identity: Identity,
    settings: Settings,
    network: Network,
    *,
    control_group: ControlGroup | None = None,
) -> Policy:
    """The policy.

    Args:
        situation: what the service is doing now.
        identity: the user whose sockets may use the wire.
        settings: the checked configuration.
        network: the interfaces, their addresses and the allowed bridges.
        control_group: control group of the service's sockets, if this kernel's rules can match it.
    """
    return Policy(
        state=situation.state,
        identity=identity,
        links=_derive_links(situation, network),
        socks_port=settings.socks_port,
        ipv6_probe=parse_addresses(settings.ipv6_probe),
        upstream_proxy=find_proxy_endpoint(settings.upstream_proxy),
        bootstrap_dns=parse_addresses(settings.bootstrap_dns),
        control_group=control_group,
    )


def _derive_links(situation: Situation, network: Network) -> Links:
    bare = Links(
        wires=network.wires,
        container_interfaces=network.container_interfaces,
        headerless=network.headerless,
        on_link=network.on_link,
    )
    match situation:
        case WithoutTun():
            return bare
        case Locked(tun=tun, uplink=uplink) | Connected(tun=tun, uplink=uplink):
            return _add_uplink(replace(bare, tun_index=tun, bridges=network.bridges), uplink)
        case _ as never:
            assert_never(never)


def _add_uplink(links: Links, uplink: UplinkFacts | None) -> Links:
    if uplink is None:
        return replace(links, versions=())
    return replace(
        links,
        uplink=uplink.name,
        # The uplink may have just disappeared, or had no default route when the wires were listed.
        wires=tuple(sorted({*links.wires, uplink.name})),
        stack=uplink.stack,
        gateways=uplink.gateways,
        dhcp_servers=uplink.dhcp_servers,
        versions=uplink.versions,
    )
