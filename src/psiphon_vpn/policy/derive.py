"""The policy as a function: of what the service does now, who it is, what the user configured, and what the network is.

The daemon and `diagnose` both take it from here, so that the two cannot disagree about what ought to stand. What cannot
be true cannot be written: only a `Connected` lets the core use the wire, and it has a uplink out and a TUN.
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
    """The uplink out that was chosen, as far as rules name it. The attributes are those of `Links`."""

    name: InterfaceName
    stack: tuple[InterfaceName, ...] = ()
    gateways: tuple[Address, ...] = ()
    dhcp_servers: tuple[Address, ...] = ()
    versions: tuple[int, ...] = (4, 6)


@dataclass(frozen=True, kw_only=True)
class Network:
    """What the network is, whichever uplink out is chosen. The attributes are those of `Links`."""

    wires: tuple[InterfaceName, ...] = ()
    container_interfaces: tuple[InterfaceName, ...] | None = None
    headerless: tuple[InterfaceName, ...] = ()
    on_link: OnLink = NOTHING
    bridges: tuple[GuestBridge, ...] = ()


@dataclass(frozen=True, kw_only=True)
class WithoutTun:
    """Locked, and there is no TUN: nothing but what stands on the wires."""

    state: Literal[State.LOCKED, State.FAILED] = State.LOCKED


@dataclass(frozen=True, kw_only=True)
class Locked:
    """The core may not use the wire.

    Attributes:
        tun: interface index of the TUN.
        uplink: the uplink out that there would be: its DHCP lease is renewed meanwhile.
    """

    tun: int
    uplink: UplinkFacts | None = None
    state: Literal[State.LOCKED, State.FAILED] = State.LOCKED


@dataclass(frozen=True, kw_only=True)
class Connected:
    """The core may use the wire; applications go through the TUN while it is open.

    Attributes:
        tun: interface index of the TUN.
        uplink: the uplink out that the core is bound to.
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
    """What the policy takes from the configuration (`config.Settings`)."""

    @property
    def socks_port(self) -> int:
        """TCP port of the SOCKS proxy on loopback."""

    @property
    def ipv6_probe(self) -> tuple[str, ...]:
        """Addresses of the name servers that tell whether the tunnel carries IPv6."""

    @property
    def upstream_proxy(self) -> str | None:
        """URL of a proxy on the uplink to the tunnel server."""

    @property
    def bootstrap_dns(self) -> tuple[str, ...]:
        """Addresses of the resolvers that the core may ask outside the tunnel."""


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
        situation: what the service does now.
        identity: whose sockets may use the wire.
        settings: what the user configured, checked.
        network: what the network is.
        control_group: where the service's sockets are made, if rules of this kernel can match that.
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
        # Also one that went away in this moment, or led nowhere when the wires were looked at.
        wires=tuple(sorted({*links.wires, uplink.name})),
        stack=uplink.stack,
        gateways=uplink.gateways,
        dhcp_servers=uplink.dhcp_servers,
        versions=uplink.versions,
    )
