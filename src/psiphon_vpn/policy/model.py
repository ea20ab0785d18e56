# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tables are rendered from: state, identity, links, and the settings that concern the firewall."""

import enum
from dataclasses import dataclass, field

from psiphon_vpn.policy.guests import GuestBridge
from psiphon_vpn.policy.onlink import NOTHING, OnLink
from psiphon_vpn.policy.values import Address, ControlGroup, InterfaceName, is_plain_address


class State(enum.StrEnum):
    """The states of the service. Only OPEN lets applications out, through the tunnel, and only while leased."""

    LOCKED = "LOCKED"
    CONNECTING = "CONNECTING"
    VERIFYING = "VERIFYING"
    OPEN = "OPEN"
    FAILED = "FAILED"


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A fixed address and port that the core is confined to (an upstream proxy)."""

    address: Address
    port: int

    def __post_init__(self) -> None:
        """Refuse values that must not appear in a rule.

        Raises:
            ValueError: one must not.
        """
        _check_addresses(self.address)
        _check_numbers(self.port, low=1, high=0xFFFF)


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Who may use the wire, by numeric id: names do not resolve when the boot ruleset is loaded."""

    uid: int
    gid: int
    network_manager_uids: tuple[int, ...] = (0,)
    """The uids that may speak DHCP: root and, where it exists, systemd-network."""

    def __post_init__(self) -> None:
        """Refuse values that must not appear in a rule.

        Raises:
            ValueError: one must not.
        """
        _check_numbers(self.uid, self.gid, *self.network_manager_uids, low=0, high=0xFFFFFFFE)

    @property
    def owner(self) -> str:
        """Text that matches a socket of psiphon-user in every hook: uid and gid, since a container may use either."""
        return f"meta skuid {self.uid} meta skgid {self.gid}"


@dataclass(frozen=True, kw_only=True)
class Links:
    """The links that matter to the policy.

    Attributes:
        tun_index: interface index of the TUN that this daemon made, None while there is none.
        uplink: name of the interface that the core is bound to, None while locked.
        wires: names of the interfaces that lead out of the machine and carry the egress guard.
        container_interfaces: names of the interfaces that lead to containers. Given only while a wire has a name that
            no rule can contain: then every other interface counts as a wire. None: every interface outside `wires`
            leads to containers.
        stack: the uplink and its lower devices (the card of a VLAN, the ports of a bridge). Where the kernel has the
            egress hook, nothing is opened without an egress guard on each of them.
        headerless: those of the wires whose frames have no Ethernet header.
        gateways: every gateway of the uplink, both families; empty where it has none (PPP).
        versions: the IP versions for which the uplink has a default route at all.
        dhcp_servers: on-link gateways (IPv4). A DHCP lease may be renewed with them by unicast (RFC 2131 4.4.5).
        on_link: our own addresses on the links, and the neighbours that the kernel may talk to there.
        bridges: the bridges whose guests this machine may talk to now.
    """

    tun_index: int | None = None
    uplink: InterfaceName | None = None
    wires: tuple[InterfaceName, ...] = ()
    container_interfaces: tuple[InterfaceName, ...] | None = None
    stack: tuple[InterfaceName, ...] = ()
    headerless: tuple[InterfaceName, ...] = ()
    dhcp_servers: tuple[Address, ...] = ()
    gateways: tuple[Address, ...] = ()
    versions: tuple[int, ...] = (4, 6)
    on_link: OnLink = NOTHING
    bridges: tuple[GuestBridge, ...] = ()

    def __post_init__(self) -> None:
        """Refuse values that must not appear in a rule.

        Raises:
            ValueError: one must not.
        """
        uplinks = () if self.uplink is None else (self.uplink,)
        for name in (*uplinks, *self.wires, *self.headerless, *(self.container_interfaces or ()), *self.stack):
            if not isinstance(name, InterfaceName):
                raise ValueError("an interface whose name was not checked")
        if not all(isinstance(bridge, GuestBridge) for bridge in self.bridges):
            raise ValueError("a bridge that was not checked")
        _check_addresses(*self.dhcp_servers, *self.gateways)
        _check_numbers(*self.versions, low=4, high=6)
        if self.tun_index is not None:
            _check_numbers(self.tun_index, low=0, high=2**31 - 1)


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The whole policy: exactly what the renderers need."""

    state: State
    identity: Identity
    links: Links = field(default_factory=Links)
    socks_port: int = 1081
    ipv6_probe: tuple[Address, ...] = ()
    """Name servers that the daemon queries through the tunnel, to learn whether it carries IPv6."""
    upstream_proxy: Endpoint | None = None
    bootstrap_dns: tuple[Address, ...] = ()
    """Resolvers that the core itself may query outside the tunnel. Empty unless the user configures some: R11."""
    control_group: ControlGroup | None = None
    """The control group of the service's sockets, if this kernel's rules can match it. Only the output hook can, and
    each start of the unit makes a new group: a table that outlives the daemon must not rely on it."""

    def __post_init__(self) -> None:
        """Refuse values that must not appear in a rule.

        Raises:
            ValueError: one must not.
        """
        _check_addresses(*self.ipv6_probe, *self.bootstrap_dns)
        if not isinstance(self.control_group, ControlGroup | None):
            raise ValueError("a control group whose path was not checked")
        _check_numbers(self.socks_port, low=1, high=0xFFFF)


def _check_addresses(*values: object) -> None:
    if not all(is_plain_address(value) for value in values):
        raise ValueError("an address that was not checked")


def _check_numbers(*values: object, low: int, high: int) -> None:
    if not all(type(value) is int and low <= value <= high for value in values):
        raise ValueError("a number that was not checked")
