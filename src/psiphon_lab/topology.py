# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Connects the hosts of a world: cables, switches, addresses, routes, sysctls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psiphon_lab import addresses as plan
from psiphon_lab.addresses import LAN_A, LAN_B, Place
from psiphon_lab.namespace import Host, LabError
from psiphon_lab.waiting import wait_until

RT_PROTO_STATIC = 4
FIRST_CABLE_INDEX = 100
IFA_F_NODAD = 0x02  # <linux/if_addr.h>

# Duplicate address detection would delay each address by a second, and no world has duplicates.
QUIET_CARDS = ("accept_dad", "dad_transmits", "accept_ra", "router_solicitations")
"""Settings of each card that are 0."""
_COMMON_SYSCTLS: dict[str, str | int] = {
    "ipv6/conf/all/accept_dad": 0,
    "ipv6/conf/all/accept_ra": 0,
    **{f"ipv6/conf/default/{name}": 0 for name in QUIET_CARDS},
}
_FORWARDING: dict[str, str | int] = {"ipv4/ip_forward": 1, "ipv6/conf/all/forwarding": 1}
# Every user may use ping sockets, as on distributions (by default the kernel allows nobody).
_PING: dict[str, str | int] = {"ipv4/ping_group_range": "0 2147483647"}


_CABLES = (
    *((("client", lan.interface), (lan.name, lan.port), lan.mac) for lan in (LAN_A, LAN_B)),
    (("neighbour", "eth0"), ("provider_a", "neighbour"), None),
    (("provider_a", "wan"), ("backbone", "a"), None),
    (("provider_b", "wan"), ("backbone", "b"), None),
    (("internet", "eth0"), ("backbone", "web"), None),
    (("server", "eth0"), ("backbone", "server"), None),
    (("container", "eth0"), ("client", "ctr0"), None),
)
"""Both ends of each cable, as host and interface, and the first end's address if it matters."""


def find_link(ipr: Any, name: str) -> int:
    """The interface index of `name`. Raises LabError if there is none."""
    indexes = ipr.link_lookup(ifname=name)
    if not indexes:
        raise LabError(f"no interface {name}")
    return int(indexes[0])


def add_address(ipr: Any, name: str, *cidrs: str) -> None:
    """Set a link up and add addresses, written as address/prefix."""
    index = find_link(ipr, name)
    ipr.link("set", index=index, state="up")
    for cidr in cidrs:
        address, prefix = cidr.split("/")
        # Without this flag an IPv6 address is tentative for a moment even without duplicate address detection, and
        # meanwhile the kernel uses another interface's address as the source.
        flags = {"flags": IFA_F_NODAD} if ":" in address else {}
        ipr.addr("add", index=index, address=address, prefixlen=int(prefix), **flags)


def wait_operational(ipr: Any, name: str) -> None:
    """Wait until the kernel has noticed a link's carrier; until then it drops packets. Raises LabError."""
    index = find_link(ipr, name)
    wait_until(lambda: ipr.link("get", index=index)[0].get_attr("IFLA_OPERSTATE") == "UP", f"{name} operational")


def add_route(ipr: Any, destination: str, gateway: str, **more: Any) -> None:
    """A route by gateway in the main table; destination "default" or a network."""
    family = 10 if ":" in gateway else 2
    ipr.route("replace", family=family, dst=destination, gateway=gateway, **more)


def add_cable(left: Host, left_name: str, right: Host, right_name: str, *, mac: str | None = None) -> None:
    """A cable (veth pair) between two hosts, both ends down. mac: the left end's address."""

    def inside(ipr: Any) -> None:
        extra = {} if mac is None else {"address": mac}
        peer = {"ifname": right_name, "net_ns_pid": right.pid}
        # If both ends have the same index, the kernel does not treat them as a pair, and notices their carrier up to a
        # second late (linkwatch_urgent_event in net/core/link_watch.c).
        index = FIRST_CABLE_INDEX + len(list(ipr.link("dump")))
        ipr.link("add", index=index, ifname=left_name, kind="veth", peer=peer, **extra)

    left.netlink(inside)


def wire_up(hosts: Mapping[str, Host], *, forwarding: bool) -> None:
    """Connect and configure the hosts that there are, but leave the client's uplinks down and without addresses.

    A cable needs both its hosts. Where the client is not among them, the other ends of its cables must exist already.
    forwarding: whether the client forwards for its container.
    """
    routers = {"provider_a", "provider_b", "backbone", "server", *(["client"] if forwarding else [])}
    for name, host in hosts.items():
        host.set_sysctls({**_COMMON_SYSCTLS, **_PING, **(_FORWARDING if name in routers else {})})
    for (left, left_name), (right, right_name), mac in _CABLES:
        if left in hosts and right in hosts:
            add_cable(hosts[left], left_name, hosts[right], right_name, mac=mac)
    for name, set_up in _SET_UP.items():
        if name in hosts:
            hosts[name].netlink(set_up)
    if {"client", "container"} <= hosts.keys():
        hosts["client"].netlink(lambda ipr: wait_operational(ipr, "ctr0"))


def _set_up_client(ipr: Any) -> None:
    add_address(ipr, "ctr0", f"{plan.CONTAINER_GATEWAY4}/24", f"{plan.CONTAINER_GATEWAY6}/64")


def _set_up_container(ipr: Any) -> None:
    add_address(ipr, "eth0", f"{plan.CONTAINER4}/24", f"{plan.CONTAINER6}/64")
    _add_default_routes(ipr, plan.CONTAINER_GATEWAY4, plan.CONTAINER_GATEWAY6)


def _set_up_backbone(ipr: Any) -> None:
    ipr.link("add", ifname="br0", kind="bridge")
    bridge = find_link(ipr, "br0")
    for port in ("a", "b", "web"):
        ipr.link("set", index=find_link(ipr, port), master=bridge, state="up")
    add_address(ipr, "br0", f"{plan.BACKBONE4}/24", f"{plan.BACKBONE6}/64")
    _set_up_gateway(ipr, plan.FIRST_PLACE)
    add_route(ipr, f"{plan.LIST_HOST4}/32", plan.INTERNET4)
    add_route(ipr, f"{plan.LIST_HOST6}/128", plan.INTERNET6)
    _add_provider_routes(ipr)


def _add_provider_routes(ipr: Any) -> None:
    add_route(ipr, LAN_A.network4, plan.BACKBONE_A4)
    add_route(ipr, LAN_A.network6, plan.BACKBONE_A6)
    add_route(ipr, LAN_B.network4, plan.BACKBONE_B4)
    add_route(ipr, LAN_B.network6, plan.BACKBONE_B6)


def _set_up_provider_a(ipr: Any) -> None:
    # Both ports belong to one switch. The client's stays down until its capture runs.
    ipr.link("add", ifname="lan", kind="bridge")
    bridge = find_link(ipr, "lan")
    ipr.link("set", index=find_link(ipr, LAN_A.port), master=bridge)
    ipr.link("set", index=find_link(ipr, "neighbour"), master=bridge, state="up")
    add_address(ipr, "lan", f"{LAN_A.router4}/25", f"{LAN_A.router6}/64")
    add_address(ipr, "wan", f"{plan.BACKBONE_A4}/24", f"{plan.BACKBONE_A6}/64")
    _add_default_routes(ipr, plan.BACKBONE4, plan.BACKBONE6)


def _set_up_provider_b(ipr: Any) -> None:
    ipr.link("add", ifname="lan", kind="bridge")
    ipr.link("set", index=find_link(ipr, LAN_B.port), master=find_link(ipr, "lan"))
    add_address(ipr, "lan", f"{LAN_B.router4}/25", f"{LAN_B.router6}/64")
    add_address(ipr, "wan", f"{plan.BACKBONE_B4}/24", f"{plan.BACKBONE_B6}/64")
    _add_default_routes(ipr, plan.BACKBONE4, plan.BACKBONE6)


def _set_up_internet(ipr: Any) -> None:
    add_address(ipr, "eth0", f"{plan.INTERNET4}/24", f"{plan.INTERNET6}/64")
    add_address(ipr, "lo", f"{plan.LIST_HOST4}/32", f"{plan.LIST_HOST6}/128")
    _add_default_routes(ipr, plan.BACKBONE4, plan.BACKBONE6)
    _add_provider_routes(ipr)


def _set_up_server(ipr: Any, place: Place = plan.FIRST_PLACE) -> None:
    add_address(ipr, "eth0", f"{place.address4}/{place.prefix4}", f"{place.address6}/{place.prefix6}")
    _add_default_routes(ipr, place.gateway4, place.gateway6)
    # On lo, so that masquerading never uses the resolver's address.
    add_address(ipr, "lo", f"{plan.SERVER_RESOLVER4}/32", f"{plan.SERVER_RESOLVER6}/128")


def _set_up_gateway(ipr: Any, place: Place) -> None:
    add_address(ipr, place.port, f"{place.gateway4}/{place.prefix4}", f"{place.gateway6}/{place.prefix6}")


def add_server_host(host: Host, backbone: Host, place: Place) -> None:
    """Connect another tunnel server's host to the backbone, and configure both ends."""
    host.set_sysctls({**_COMMON_SYSCTLS, **_PING, **_FORWARDING})
    add_cable(host, "eth0", backbone, place.port)
    host.netlink(lambda ipr: _set_up_server(ipr, place))
    backbone.netlink(lambda ipr: _set_up_gateway(ipr, place))


def _set_up_neighbour(ipr: Any) -> None:
    add_address(ipr, "eth0", f"{plan.NEIGHBOUR4}/25", f"{plan.NEIGHBOUR6}/64")
    _add_default_routes(ipr, LAN_A.router4, LAN_A.router6)


def _add_default_routes(ipr: Any, gateway4: str, gateway6: str) -> None:
    add_route(ipr, "default", gateway4, proto=RT_PROTO_STATIC)
    add_route(ipr, "default", gateway6, proto=RT_PROTO_STATIC)


_SET_UP = {
    "client": _set_up_client,
    "backbone": _set_up_backbone,
    "provider_a": _set_up_provider_a,
    "provider_b": _set_up_provider_b,
    "internet": _set_up_internet,
    "server": _set_up_server,
    "neighbour": _set_up_neighbour,
    "container": _set_up_container,
}
