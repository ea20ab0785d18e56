"""How the hosts of a world are wired up: cables, switches, addresses, routes, sysctls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psiphon_lab import addresses as plan
from psiphon_lab.addresses import LAN_A, LAN_B
from psiphon_lab.namespace import Host, LabError
from psiphon_lab.waiting import wait_until

RT_PROTO_STATIC = 4
FIRST_CABLE_INDEX = 100
IFA_F_NODAD = 0x02  # <linux/if_addr.h>

# Duplicate address detection would delay every address by a second; no world has duplicates.
_COMMON_SYSCTLS: dict[str, str | int] = {
    "ipv6/conf/all/accept_dad": 0,
    "ipv6/conf/default/accept_dad": 0,
    "ipv6/conf/default/dad_transmits": 0,
    "ipv6/conf/all/accept_ra": 0,
    "ipv6/conf/default/accept_ra": 0,
    "ipv6/conf/default/router_solicitations": 0,
}
_FORWARDING: dict[str, str | int] = {"ipv4/ip_forward": 1, "ipv6/conf/all/forwarding": 1}
# Ping sockets for every user, as distributions have it (the kernel's own default is nobody).
_PING: dict[str, str | int] = {"ipv4/ping_group_range": "0 2147483647"}


def find_link(ipr: Any, name: str) -> int:
    """The interface index of `name`. Raises LabError if there is none."""
    found = ipr.link_lookup(ifname=name)
    if not found:
        raise LabError(f"no interface {name}")
    return int(found[0])


def add_address(ipr: Any, name: str, *cidrs: str) -> None:
    """Bring a link up and give it addresses, written as address/prefix."""
    index = find_link(ipr, name)
    ipr.link("set", index=index, state="up")
    for cidr in cidrs:
        address, prefix = cidr.split("/")
        # Without this flag an IPv6 address is tentative for a moment even where no duplicate is looked for, and
        # the kernel takes another interface's address as the source meanwhile.
        flags = {"flags": IFA_F_NODAD} if ":" in address else {}
        ipr.addr("add", index=index, address=address, prefixlen=int(prefix), **flags)


def wait_operational(ipr: Any, name: str) -> None:
    """Wait until the kernel has seen a link's carrier: before that it drops what is sent. Raises LabError."""
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
        # Ends with the same index would be taken for no pair, and their carrier noticed up to a second late
        # (linkwatch_urgent_event in the kernel's net/core/link_watch.c).
        index = FIRST_CABLE_INDEX + len(list(ipr.link("dump")))
        ipr.link("add", index=index, ifname=left_name, kind="veth", peer=peer, **extra)

    left.netlink(inside)


def wire_up(hosts: Mapping[str, Host], *, forwarding: bool) -> None:
    """Connect and configure every host; only the client's own uplinks stay down and without addresses.

    forwarding: whether the client forwards for its container.
    """
    routers = {"provider_a", "provider_b", "backbone", "server", *(["client"] if forwarding else [])}
    for name, host in hosts.items():
        host.set_sysctls({**_COMMON_SYSCTLS, **_PING, **(_FORWARDING if name in routers else {})})
    client, backbone = hosts["client"], hosts["backbone"]
    for lan in (LAN_A, LAN_B):
        add_cable(client, lan.interface, hosts[lan.name], lan.port, mac=lan.mac)
    add_cable(hosts["neighbour"], "eth0", hosts["provider_a"], "neighbour")
    add_cable(hosts["provider_a"], "wan", backbone, "a")
    add_cable(hosts["provider_b"], "wan", backbone, "b")
    add_cable(hosts["internet"], "eth0", backbone, "web")
    add_cable(hosts["server"], "eth0", backbone, "server")
    add_cable(hosts["container"], "eth0", client, "ctr0")
    for name, set_up in _SET_UP.items():
        hosts[name].netlink(set_up)
    client.netlink(lambda ipr: wait_operational(ipr, "ctr0"))


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
    add_address(ipr, "server", f"{plan.SERVER_GATEWAY4}/24", f"{plan.SERVER_GATEWAY6}/64")
    _add_provider_routes(ipr)


def _add_provider_routes(ipr: Any) -> None:
    add_route(ipr, LAN_A.network4, plan.BACKBONE_A4)
    add_route(ipr, LAN_A.network6, plan.BACKBONE_A6)
    add_route(ipr, LAN_B.network4, plan.BACKBONE_B4)
    add_route(ipr, LAN_B.network6, plan.BACKBONE_B6)


def _set_up_provider_a(ipr: Any) -> None:
    # The ports stay cables of one switch; the client's stays down until its capture runs.
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
    _add_default_routes(ipr, plan.BACKBONE4, plan.BACKBONE6)
    _add_provider_routes(ipr)


def _set_up_server(ipr: Any) -> None:
    add_address(ipr, "eth0", f"{plan.SERVER4}/24", f"{plan.SERVER6}/64")
    _add_default_routes(ipr, plan.SERVER_GATEWAY4, plan.SERVER_GATEWAY6)
    # On lo, so that masquerading never picks the resolver's address for what the server sends out.
    add_address(ipr, "lo", f"{plan.SERVER_RESOLVER4}/32", f"{plan.SERVER_RESOLVER6}/128")


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
