"""Links, addresses and default routes by netlink, as they are at a moment."""

import ipaddress
from typing import Any

from pyroute2 import AsyncIPRoute

from psiphon_vpn.policy.routing import IPV4, IPV6, MAIN_TABLE
from psiphon_vpn.policy.values import decode_name
from psiphon_vpn.service.uplink import DefaultRoute, Interface, Snapshot

AF_INET, AF_INET6 = 2, 10
ARPHRD_ETHER = 1
IFF_UP, IFF_LOWER_UP = 0x1, 0x10000
RT_SCOPE_UNIVERSE = 0
IFA_F_TENTATIVE, IFA_F_DADFAILED = 0x40, 0x08


def read_name(link: Any) -> str:
    """The name of a link. pyroute2 leaves what is no UTF-8 undecoded."""
    return decode_name(link.get("ifname") or "")


async def read_snapshot(ipr: AsyncIPRoute) -> Snapshot:
    """The links as they are now."""
    addresses: dict[int, set[tuple[int, str]]] = {}
    async for message in await ipr.get_addr():
        flags = message.get("IFA_FLAGS", message["flags"])
        if message["scope"] != RT_SCOPE_UNIVERSE or flags & (IFA_F_TENTATIVE | IFA_F_DADFAILED):
            continue
        addresses.setdefault(message["index"], set()).add(_place(message))
    interfaces = []
    async for link in await ipr.get_links():
        up = bool(link["flags"] & IFF_UP) and bool(link["flags"] & IFF_LOWER_UP)
        interfaces.append(
            Interface(
                index=link["index"],
                name=read_name(link),
                up=up,
                kind=link.get(("linkinfo", "kind")),
                headerless=link["ifi_type"] != ARPHRD_ETHER,
                addresses=tuple(sorted(addresses.get(link["index"], ()))),
            )
        )
    defaults = []
    for family, version in ((AF_INET, IPV4), (AF_INET6, IPV6)):
        async for route in await ipr.get_routes(family=family, table=MAIN_TABLE):
            if route["dst_len"] == 0 and route.get("RTA_TABLE", route["table"]) == MAIN_TABLE and route["type"] == 1:
                defaults += _read_default(route, version)
    return Snapshot(interfaces=tuple(interfaces), defaults=tuple(defaults))


def _place(message: Any) -> tuple[int, str]:
    text = message.get("local") or message.get("address")
    if message["family"] == AF_INET:
        return IPV4, text
    return IPV6, str(ipaddress.IPv6Network((text, 64), strict=False))


def _read_default(route: Any, version: int) -> list[DefaultRoute]:
    metric = route.get("RTA_PRIORITY", 0)
    hops = route.get("RTA_MULTIPATH") or ()
    if not hops:
        index = route.get("RTA_OIF")
        if index is None:
            return []
        gateway, source = route.get("RTA_GATEWAY"), route.get("RTA_PREFSRC")
        return [DefaultRoute(version=version, index=index, gateway=gateway, metric=metric, source=source)]
    return [
        DefaultRoute(version=version, index=hop["oif"], gateway=hop.get("RTA_GATEWAY"), metric=metric) for hop in hops
    ]
