# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Policies that the tests share: those of the golden files, and random ones."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import replace

from hypothesis import strategies as st
from tests import hostile

from psiphon_vpn.policy.base import build_base_table, build_drop_only
from psiphon_vpn.policy.guards import (
    build_arp_table,
    build_egress_guard,
    build_frame_guard,
    build_wire_guard,
    render_bridge_rules,
)
from psiphon_vpn.policy.guests import GuestBridge
from psiphon_vpn.policy.model import Endpoint, Identity, Links, Policy, State
from psiphon_vpn.policy.onlink import OnLink, find_on_link
from psiphon_vpn.policy.routing import Route, RoutingRule, build_routes, build_rules
from psiphon_vpn.policy.ruleset import Chain, Rule, Table
from psiphon_vpn.policy.sysctls import GLOBAL_SYSCTLS, TUN_SYSCTLS
from psiphon_vpn.policy.values import Address, InterfaceName, decode_name, parse_address, parse_addresses, parse_names

IDENTITY = Identity(uid=64190, gid=64190, network_manager_uids=(0, 998))
# Index 1 is lo in every namespace, so the golden files load anywhere: nft refuses an index without an interface.
LINKS = Links(
    tun_index=1,
    uplink=InterfaceName("eth0"),
    wires=parse_names("eth0"),
    dhcp_servers=parse_addresses(["192.0.2.1"]),
    gateways=parse_addresses(["192.0.2.1", "fe80::1"]),
    on_link=find_on_link(
        map(ipaddress.ip_interface, ("192.0.2.10/25", "2001:db8:a::10/64", "fe80::a10/64")),
        parse_addresses(["192.0.2.1", "fe80::1"]),
    ),
)
BRIDGES = (GuestBridge(index=5, addresses=tuple(map(ipaddress.ip_interface, ("192.168.122.1/24", "fd00:122::1/64")))),)
PROBE = ("2001:500:ba3e::2:30", "2001:7fd::1")


def make_policy(state: State, **changes: object) -> Policy:
    """The policy of a usual machine: an uplink, a TUN, IPv6 to be probed."""
    return replace(Policy(state=state, identity=IDENTITY, links=LINKS, ipv6_probe=parse_addresses(PROBE)), **changes)  # type: ignore[arg-type]


def make_bridged_policy(state: State) -> Policy:
    """The same, with a bridge that root allowed."""
    return make_policy(state, links=replace(LINKS, bridges=BRIDGES))


def make_situations() -> dict[str, Policy]:
    """Each kind of machine and of configuration that has rules of its own, while open."""
    wired, wireless = ("192.0.2.10/25", "2001:db8:a::10/64", "fe80::a10/64"), ("198.51.100.7/24", "fe80::b7/64")
    gateways = {"ipv4": parse_addresses(["192.0.2.1"]), "ipv6": parse_addresses(["fe80::1"])}

    def on_link(*own: str, gateways: tuple[Address, ...]) -> OnLink:
        return find_on_link(map(ipaddress.ip_interface, own), gateways)

    links = {
        # One uplink that is in use, and another one.
        "two_uplinks": replace(
            LINKS,
            wires=parse_names("eth0", "wlan0"),
            dhcp_servers=parse_addresses(["192.0.2.1", "198.51.100.1"]),
            on_link=on_link(
                *wired, *wireless, gateways=(*LINKS.gateways, *parse_addresses(["198.51.100.1", "fe80::2"]))
            ),
        ),
        "ipv4_only": replace(
            LINKS, gateways=gateways["ipv4"], versions=(4,), on_link=on_link(wired[0], gateways=gateways["ipv4"])
        ),
        "ipv6_only": replace(
            LINKS,
            gateways=gateways["ipv6"],
            versions=(6,),
            dhcp_servers=(),
            on_link=on_link(*wired[1:], gateways=gateways["ipv6"]),
        ),
        # A PPP line: no gateway, and no Ethernet header before its packets.
        "no_ethernet_header": Links(
            tun_index=1,
            uplink=InterfaceName("ppp0"),
            wires=parse_names("ppp0"),
            headerless=parse_names("ppp0"),
            on_link=on_link("203.0.113.5/32", "fe80::5/64", gateways=()),
        ),
        # A name that no rule can contain: only interfaces that lead to containers are matched by name.
        "odd_name": replace(LINKS, container_interfaces=parse_names("docker0", "veth1")),
    }
    situations = {name: make_policy(State.OPEN, links=value) for name, value in links.items()}
    proxy = Endpoint(address=parse_address("192.0.2.9"), port=3128)
    situations["upstream_proxy"] = make_policy(State.OPEN, upstream_proxy=proxy)
    situations["bootstrap_dns"] = make_policy(State.OPEN, bootstrap_dns=parse_addresses(["9.9.9.9", "2620:fe::fe"]))
    situations["no_probe"] = make_policy(State.OPEN, ipv6_probe=())
    return situations


def _situation_rulesets() -> dict[str, str]:
    texts = {}
    for name, policy in make_situations().items():
        texts[name] = build_base_table(policy).render_replacement()
        links = policy.links
        if links.on_link != LINKS.on_link:
            # On lo, since nft refuses a device that does not exist.
            devices = parse_names("lo")
            headerless = devices if links.headerless else ()
            egress = build_egress_guard(
                IDENTITY, devices, links.dhcp_servers, headerless=headerless, on_link=links.on_link
            )
            assert egress is not None
            texts[f"{name}_egress"] = egress.render_replacement()
    return texts


def golden_rulesets() -> dict[str, str]:
    """The text of every golden ruleset, as it is loaded."""
    boot = Policy(state=State.LOCKED, identity=Identity(uid=64190, gid=64190))
    texts = {"boot": build_base_table(boot).render_replacement()}
    for state in State:
        texts[state.lower()] = build_base_table(make_policy(state)).render_replacement()
    egress = build_egress_guard(IDENTITY, parse_names("lo"), LINKS.dhcp_servers, on_link=LINKS.on_link)
    assert egress is not None
    texts["open_with_bridge"] = build_base_table(make_bridged_policy(State.OPEN)).render_replacement()
    texts["bridges"] = render_bridge_rules(IDENTITY, parse_names("virbr0"))
    texts["wire_guard"] = build_wire_guard(IDENTITY).render()
    frames = build_frame_guard(IDENTITY, parse_names("lo"))
    texts["frame_guard"] = frames.render()
    texts["egress_guard"] = egress.render_replacement()
    texts["arp"] = build_arp_table().render_replacement()
    texts["drop_only"] = build_drop_only(build_base_table(boot)).render_replacement()
    return {**texts, **_situation_rulesets()}


def golden_tables() -> dict[str, Table]:
    """The tables of the golden files, as values."""
    boot = Policy(state=State.LOCKED, identity=Identity(uid=64190, gid=64190))
    tables = {"boot": build_base_table(boot), "drop_only": build_drop_only(build_base_table(boot))}
    tables |= {state.lower(): build_base_table(make_policy(state)) for state in State}
    tables["open_with_bridge"] = build_base_table(make_bridged_policy(State.OPEN))
    return tables | {name: build_base_table(policy) for name, policy in make_situations().items()}


def _show_rule(rule: RoutingRule) -> str:
    parts = [f"ipv{rule.version}", f"priority {rule.priority}"]
    for word, value in (
        ("to", rule.destination),
        ("iif", rule.input_interface),
        ("oif", rule.output_interface),
        ("fwmark", rule.fwmark and f"{rule.fwmark:#x}"),
        ("uidrange", rule.uid_range and "-".join(map(str, rule.uid_range))),
        ("ipproto", rule.protocol),
        ("dport", rule.destination_port),
    ):
        if value is not None:
            parts.append(f"{word} {value}")
    return " ".join([*parts, f"table {rule.table}"])


def _show_route(route: Route) -> str:
    kind = "unreachable" if route.unreachable else "PsiphonTUN"
    source = f" source {route.source}" if route.source else ""
    return f"ipv{route.version} {route.destination} {kind} metric {route.metric}{source}"


def golden_texts() -> dict[str, str]:
    """Routing and kernel settings, one line each."""
    lines = ["# rules, the same in every state", *map(_show_rule, build_rules(IDENTITY))]
    for heading, tun, open_ipv4, open_ipv6 in (
        ("no TUN", False, False, False),
        ("closed", True, False, False),
        ("open", True, True, False),
        ("open, and the tunnel carries IPv6", True, True, True),
    ):
        routes = build_routes(tun=tun, open_ipv4=open_ipv4, open_ipv6=open_ipv6, ipv6_probe=PROBE)
        lines += ["", f"# private table: {heading}", *map(_show_route, routes)]
    settings = [f"{name} = {value}" for name, value in sorted({**GLOBAL_SYSCTLS, **TUN_SYSCTLS}.items())]
    return {"routing": "\n".join(lines) + "\n", "sysctls": "\n".join(settings) + "\n"}


def accepting_rules(table: Table) -> Iterator[tuple[Chain, Rule]]:
    """Every rule that ends in accept, with its chain."""
    for chain in table.chains:
        for rule in chain.rules:
            if rule.text.endswith(" accept"):
                yield chain, rule


_names = st.sampled_from(parse_names("eth0", "wlan0", "enp0s31f6", "wwan0", "br-lan", "eth0.100", "7", "accept"))


@st.composite
def _links_out(draw: st.DrawFn) -> tuple[tuple[InterfaceName, ...], tuple[InterfaceName, ...] | None]:
    """Wires with usual and hostile names, sorted as the daemon sorts them."""
    found = draw(st.lists(_names | hostile.names.map(decode_name), unique=True, max_size=4))
    wires = tuple(name for text in found if (name := InterfaceName.of(text)) is not None)
    if len(wires) == len(found):
        return wires, None
    inner = draw(st.lists(st.sampled_from(parse_names("docker0", "br-0", "veth1", "1")), unique=True, max_size=3))
    return wires, tuple(inner)


_ipv4 = st.ip_addresses(v=4)
_ipv6 = st.ip_addresses(v=6)
on_links = st.builds(
    find_on_link,
    st.lists(
        st.builds(lambda *parts: ipaddress.ip_interface(parts), st.ip_addresses(v=4), st.integers(0, 32))
        | st.builds(lambda *parts: ipaddress.ip_interface(parts), st.ip_addresses(v=6), st.integers(0, 128)),
        max_size=4,
    ),
    st.lists(st.ip_addresses(), max_size=2),
)
"""Anything that netlink may tell of the links."""
_guest_addresses = st.builds(
    lambda *parts: ipaddress.ip_interface(parts),
    st.sampled_from(list(map(ipaddress.ip_address, ("10.1.0.1", "172.16.9.1", "192.168.122.1")))),
    st.integers(16, 30),
) | st.builds(
    lambda *parts: ipaddress.ip_interface(parts), st.just(ipaddress.ip_address("fd00:122::1")), st.integers(48, 126)
)
_bridges = st.lists(
    st.builds(
        GuestBridge,
        index=st.integers(2, 2**31 - 1),
        addresses=st.lists(_guest_addresses, unique=True, max_size=3).map(tuple),
    ),
    max_size=2,
).map(tuple)
_links = st.builds(
    lambda out, **rest: Links(wires=out[0], container_interfaces=out[1], **rest),
    out=_links_out(),
    tun_index=st.none() | st.integers(1, 2**31 - 1),
    uplink=st.none() | _names | hostile.names.map(decode_name).map(InterfaceName.of),
    dhcp_servers=st.lists(_ipv4, unique=True, max_size=2).map(tuple),
    gateways=st.lists(_ipv4 | _ipv6, unique=True, max_size=3).map(tuple),
    on_link=on_links,
    bridges=_bridges,
)
policies = st.builds(
    Policy,
    state=st.sampled_from(State),
    identity=st.builds(
        Identity,
        uid=st.integers(1, 2**32 - 2),
        gid=st.integers(1, 2**32 - 2),
        network_manager_uids=st.lists(st.integers(0, 999), min_size=1, max_size=3, unique=True).map(tuple),
    ),
    links=_links,
    socks_port=st.integers(1, 65535),
    ipv6_probe=st.lists(_ipv6, unique=True, max_size=2).map(tuple),
    upstream_proxy=st.none() | st.builds(Endpoint, address=_ipv4 | _ipv6, port=st.integers(1, 65535)),
    bootstrap_dns=st.lists(_ipv4 | _ipv6, unique=True, max_size=2).map(tuple),
)
"""Any policy at all."""
