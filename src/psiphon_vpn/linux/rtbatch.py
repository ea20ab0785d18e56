# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Encodes routing rules, routes and the TUN, as a `RouteSocket` sends them.

All of them go in one write, without reading anything first: what is there already stays as it is (NLM_F_EXCL).
`routes.check_routing` and `tun.check_tun` check the result afterwards.
"""

import socket
import struct

from psiphon_vpn.linux.netlink import write_attribute
from psiphon_vpn.linux.rtnetlink import (
    RTM_DELLINK,
    RTM_DELROUTE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWROUTE,
    RTM_NEWRULE,
    Message,
)
from psiphon_vpn.linux.rtvalues import (
    FAMILY,
    FR_ACT_TO_TBL,
    FRA_DPORT_RANGE,
    FRA_DST,
    FRA_FWMARK,
    FRA_FWMASK,
    FRA_IIFNAME,
    FRA_IP_PROTO,
    FRA_OIFNAME,
    FRA_PRIORITY,
    FRA_TABLE,
    FRA_UID_RANGE,
    IFA_ADDRESS,
    IFA_FLAGS,
    IFA_LOCAL,
    IFADDRMSG,
    IFF_UP,
    IFINFOMSG,
    IFLA_IFNAME,
    IFLA_INFO_KIND,
    IFLA_LINKINFO,
    IFLA_MASTER,
    IFLA_MTU,
    IFLA_TXQLEN,
    RTA_DST,
    RTA_OIF,
    RTA_PREFSRC,
    RTA_PRIORITY,
    RTA_TABLE,
    RTMSG,
    encode_name,
)
from psiphon_vpn.policy import names
from psiphon_vpn.policy.routing import IPV4, LOCAL_TABLE, MARK_MASK, Route, RoutingRule

IFA_F_NODAD, IFA_F_NOPREFIXROUTE = 0x02, 0x200
RTN_UNICAST, RTN_LOCAL, RTN_UNREACHABLE = 1, 2, 7
RTPROT_KERNEL, RT_SCOPE_HOST = 2, 254
RT_TABLE_UNSPEC, RTPROT_STATIC, RT_SCOPE_UNIVERSE, RT_SCOPE_LINK, RT_SCOPE_NOWHERE = 0, 4, 0, 253, 255


def _pack_address(version: int, text: str) -> bytes:
    return socket.inet_pton(FAMILY[version], text)


def _number(kind: int, value: int) -> bytes:
    return write_attribute(kind, struct.pack("=I", value))


def encode_rule(rule: RoutingRule) -> Message:
    """A rule (struct fib_rule_hdr, enum FRA_*)."""
    address, _, length = (rule.destination or "").partition("/")
    body = RTMSG.pack(FAMILY[rule.version], int(length or 0), 0, 0, 0, 0, 0, FR_ACT_TO_TBL, 0)
    body += _number(FRA_TABLE, rule.table) + _number(FRA_PRIORITY, rule.priority)
    if address:
        body += write_attribute(FRA_DST, _pack_address(rule.version, address))
    for kind, name in ((FRA_IIFNAME, rule.input_interface), (FRA_OIFNAME, rule.output_interface)):
        if name is not None:
            body += write_attribute(kind, encode_name(name))
    if rule.fwmark is not None:
        body += _number(FRA_FWMARK, rule.fwmark) + _number(FRA_FWMASK, MARK_MASK)
    if rule.uid_range is not None:
        body += write_attribute(FRA_UID_RANGE, struct.pack("=II", *rule.uid_range))
    if rule.protocol is not None:
        body += write_attribute(FRA_IP_PROTO, struct.pack("=B", rule.protocol))
    if rule.destination_port is not None:
        body += write_attribute(FRA_DPORT_RANGE, struct.pack("=HH", rule.destination_port, rule.destination_port))
    return RTM_NEWRULE, body


def encode_route(route: Route, tun_index: int) -> Message:
    """A route of the private table (struct rtmsg, enum RTA_*)."""
    address, _, length = route.destination.partition("/")
    kind = RTN_UNREACHABLE if route.unreachable else RTN_UNICAST
    scope = RT_SCOPE_LINK if route.version == IPV4 and not route.unreachable else RT_SCOPE_UNIVERSE
    head = (FAMILY[route.version], int(length), 0, 0, RT_TABLE_UNSPEC, RTPROT_STATIC, scope, kind, 0)
    body = RTMSG.pack(*head) + _number(RTA_TABLE, names.ROUTE_TABLE) + _number(RTA_PRIORITY, route.metric)
    if int(length):
        body += write_attribute(RTA_DST, _pack_address(route.version, address))
    if not route.unreachable:
        body += _number(RTA_OIF, tun_index)
        if route.source is not None:
            body += write_attribute(RTA_PREFSRC, _pack_address(route.version, route.source))
    return RTM_NEWROUTE, body


def encode_route_removal(route: Route, kind: int) -> Message:
    """The removal of a route of the private table, whatever its type (RTN_*) and its next hop."""
    address, _, length = route.destination.partition("/")
    # Whatever its scope (fib_trie.c, fib_table_delete); IPv6 has no scopes.
    scope = RT_SCOPE_NOWHERE if route.version == IPV4 else RT_SCOPE_UNIVERSE
    head = (FAMILY[route.version], int(length), 0, 0, RT_TABLE_UNSPEC, 0, scope, kind, 0)
    body = RTMSG.pack(*head) + _number(RTA_TABLE, names.ROUTE_TABLE) + _number(RTA_PRIORITY, route.metric)
    if int(length):
        body += write_attribute(RTA_DST, _pack_address(route.version, address))
    return RTM_DELROUTE, body


def encode_link(name: str, index: int, kind: str) -> Message:
    """A new device of a kind without further attributes (struct ifinfomsg)."""
    body = IFINFOMSG.pack(0, 0, index, 0, 0) + write_attribute(IFLA_IFNAME, encode_name(name))
    info = write_attribute(IFLA_INFO_KIND, kind.encode() + b"\0")
    return RTM_NEWLINK, body + write_attribute(IFLA_LINKINFO, info)


def encode_renaming(index: int, name: str) -> Message:
    """Another name for a device (struct ifinfomsg). Without NLM_F_CREATE nothing is made."""
    body = IFINFOMSG.pack(0, 0, index, 0, 0) + write_attribute(IFLA_IFNAME, encode_name(name))
    return RTM_NEWLINK, body


def encode_link_removal(index: int) -> Message:
    """The removal of a device (struct ifinfomsg)."""
    return RTM_DELLINK, IFINFOMSG.pack(0, 0, index, 0, 0)


def encode_local(network: str, device: int, address: str) -> Message:
    """An IPv4 entry of the table `local`, as the kernel makes it for an address of this machine.

    Args:
        network: with its prefix length.
        device: index of the interface that has the address.
        address: the address.
    """
    target, _, length = network.partition("/")
    head = (socket.AF_INET, int(length), 0, 0, LOCAL_TABLE, RTPROT_KERNEL, RT_SCOPE_HOST, RTN_LOCAL, 0)
    body = RTMSG.pack(*head) + _number(RTA_TABLE, LOCAL_TABLE) + _number(RTA_OIF, device)
    body += write_attribute(RTA_DST, _pack_address(IPV4, target)) + write_attribute(
        RTA_PREFSRC, _pack_address(IPV4, address)
    )
    return RTM_NEWROUTE, body


def encode_loopback(index: int) -> tuple[Message, ...]:
    """The entries of the loopback network, without which no program can listen on 127.0.0.1."""
    return tuple(encode_local(network, index, "127.0.0.1") for network in ("127.0.0.0/8", "127.0.0.1/32"))


def encode_up(index: int) -> Message:
    """Set our TUN up, with its queue length, and detached from any bridge (struct ifinfomsg)."""
    body = IFINFOMSG.pack(0, 0, index, IFF_UP, IFF_UP) + _number(IFLA_MTU, names.TUN_MTU)
    return RTM_NEWLINK, body + _number(IFLA_TXQLEN, names.TUN_QUEUE) + _number(IFLA_MASTER, 0)


def encode_tun(index: int, *, ipv6: bool = True) -> tuple[Message, ...]:
    """Set our TUN up, with its addresses, and the kernel's own entries for them (struct ifinfomsg, struct ifaddrmsg).

    Args:
        index: of the TUN.
        ipv6: whether it may have IPv6.
    """
    messages = [encode_up(index)]
    chosen = [(4, names.TUN_IPV4, 24, 0), (6, names.TUN_IPV6, 64, IFA_F_NODAD)][: 2 if ipv6 else 1]
    for version, text, prefix, nodad in chosen:
        packed = _pack_address(version, text)
        body = IFADDRMSG.pack(FAMILY[version], prefix, 0, 0, index) + write_attribute(IFA_ADDRESS, packed)
        body += write_attribute(IFA_LOCAL, packed) + _number(IFA_FLAGS, IFA_F_NOPREFIXROUTE | nodad)
        messages.append((RTM_NEWADDR, body))
        if version == IPV4:
            # For IPv6 an entry of ours would stand beside the kernel's: `tun.ensure_tun` handles that.
            messages.append(encode_local(f"{text}/32", index, text))
    return tuple(messages)
