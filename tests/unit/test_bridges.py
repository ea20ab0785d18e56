# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Which allowed bridges are in force for a snapshot of the links, and what the rules then say."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests import hostile
from tests.policies import IDENTITY, accepting_rules, make_policy

from psiphon_vpn.network.bridges import (
    AllowedBridge,
    BridgeStatus,
    explain_bridge_status,
    judge_bridges,
    list_in_force,
    load_bridges,
    parse_bridges,
    render_bridges,
)
from psiphon_vpn.network.uplink import DefaultRoute, Interface, Snapshot, find_outbound
from psiphon_vpn.policy import names
from psiphon_vpn.policy.base import build_base_table
from psiphon_vpn.policy.guards import build_bridge_guard, build_wire_guard, render_bridge_rules
from psiphon_vpn.policy.guests import GUEST_KINDS, GuestBridge, list_networks, may_hold_guests
from psiphon_vpn.policy.model import State
from psiphon_vpn.policy.routing import MAIN_TABLE, build_rules
from psiphon_vpn.policy.values import InterfaceName, name_by_index

NAME = InterfaceName("virbr0")
HOST = ipaddress.ip_interface("192.168.122.1/24")
HOST6 = ipaddress.ip_interface("fd00:122::1/64")
BRIDGE = Interface(
    index=5, name=NAME, up=True, kind="bridge", on_link=(HOST, HOST6, ipaddress.ip_interface("fe80::1/64"))
)
CARD = Interface(index=2, name="eth0", up=True, on_link=(ipaddress.ip_interface("192.0.2.10/25"),))
UPLINK = DefaultRoute(version=4, index=2, gateway="192.0.2.1", metric=100)
PORTS = (
    Interface(index=6, name="vnet0", up=True, kind="tun", master=5),
    Interface(index=7, name="veth7", up=True, kind="veth", master=5),
)
USUAL = Snapshot(interfaces=(CARD, BRIDGE, *PORTS), defaults=(UPLINK,))


def judge(snapshot: Snapshot, *, guarded: bool = True, before: frozenset[int] = frozenset()) -> AllowedBridge:
    (found,) = judge_bridges(snapshot, (NAME,), outbound=find_outbound(snapshot, before), guarded=guarded)
    assert (found.bridge is not None) == (found.status is BridgeStatus.IN_FORCE)
    assert all(explain_bridge_status(found))
    return found


def having(*more: Interface, defaults: tuple[DefaultRoute, ...] = (UPLINK,)) -> Snapshot:
    indexes = {link.index for link in more}
    kept = (link for link in USUAL.interfaces if link.index not in indexes)
    return Snapshot(interfaces=(*kept, *more), defaults=defaults)


def test_a_bridge_with_guests_alone_is_in_force_by_its_index_and_its_own_networks() -> None:
    assert judge(USUAL).bridge == GuestBridge(index=5, addresses=(HOST, HOST6))
    assert list_in_force((judge(USUAL),)) == (GuestBridge(index=5, addresses=(HOST, HOST6)),)


@pytest.mark.parametrize(
    ("snapshot", "status", "detail"),
    [
        (Snapshot(), BridgeStatus.ABSENT, ""),
        (having(replace(BRIDGE, kind="dummy")), BridgeStatus.NO_BRIDGE, ""),
        (having(replace(BRIDGE, kind=None)), BridgeStatus.NO_BRIDGE, ""),
        (having(replace(CARD, master=5)), BridgeStatus.LEADS_OUT, "eth0"),
        (having(Interface(index=3, name="eth1", up=False, master=5)), BridgeStatus.LEADS_OUT, "eth1"),
        (
            having(Interface(index=3, name="v.1", up=True, kind="vlan", lower=2, master=5)),
            BridgeStatus.LEADS_OUT,
            "v.1",
        ),
        (having(Interface(index=3, name="vx", up=True, kind="vxlan", master=5)), BridgeStatus.LEADS_OUT, "vx"),
        (
            having(Interface(index=3, name="mv", up=True, kind="macvtap", lower=2, master=5)),
            BridgeStatus.LEADS_OUT,
            "mv",
        ),
        (having(Interface(index=3, name="d", up=True, kind="dummy", master=5)), BridgeStatus.LEADS_OUT, "d"),
        (
            having(replace(BRIDGE, master=9), Interface(index=9, name="vrf", up=True, kind="vrf")),
            BridgeStatus.LEADS_OUT,
            "vrf",
        ),
        (having(defaults=(UPLINK, replace(UPLINK, index=5))), BridgeStatus.ROUTED, NAME),
        (having(defaults=(UPLINK, replace(UPLINK, index=7))), BridgeStatus.LEADS_OUT, "veth7"),
        (
            having(
                Interface(index=9, name="br.7", up=True, kind="vlan", lower=5),
                defaults=(UPLINK, replace(UPLINK, index=9)),
            ),
            BridgeStatus.ROUTED,
            "br.7",
        ),
        (having(replace(BRIDGE, on_link=())), BridgeStatus.NO_NETWORK, ""),
        (having(replace(BRIDGE, on_link=(ipaddress.ip_interface("198.51.100.1/24"),))), BridgeStatus.NO_NETWORK, ""),
        (having(replace(CARD, on_link=(ipaddress.ip_interface("192.168.122.9/30"),))), BridgeStatus.OVERLAPS, "eth0"),
        (having(replace(CARD, on_link=(ipaddress.ip_interface("192.168.0.9/16"),))), BridgeStatus.OVERLAPS, "eth0"),
        (having(defaults=(replace(UPLINK, gateway="192.168.122.254"), UPLINK)), BridgeStatus.OVERLAPS, "eth0"),
    ],
)
def test_a_bridge_that_is_more_than_its_guests_is_withdrawn(
    snapshot: Snapshot, status: BridgeStatus, detail: str
) -> None:
    found = judge(snapshot)
    assert (found.status, found.detail) == (status, detail)


def test_a_pair_whose_both_ends_are_here_is_followed_to_what_is_behind() -> None:
    near = Interface(index=10, name="out0", up=True, kind="veth", lower=11, master=5)
    far = Interface(index=11, name="out1", up=True, kind="veth", lower=10, master=12)
    other = Interface(index=12, name="br9", up=True, kind="bridge")
    assert judge(having(near, far, other)).status is BridgeStatus.IN_FORCE
    card = Interface(index=13, name="eth9", up=True, master=12)
    found = judge(having(near, far, other, card))
    assert (found.status, found.detail) == (BridgeStatus.LEADS_OUT, "eth9")


def test_without_the_guard_or_where_it_cannot_be_nothing_is_in_force() -> None:
    assert judge(USUAL, guarded=False).status is BridgeStatus.UNGUARDED
    (found,) = judge_bridges(USUAL, (NAME,), outbound=frozenset({2}), guarded=True, supported=False)
    assert (found.status, found.bridge) == (BridgeStatus.UNSUPPORTED, None)


def test_a_bridge_that_led_out_once_stays_withdrawn() -> None:
    assert judge(USUAL, before=frozenset({5})).status is BridgeStatus.ROUTED


_kinds = st.sampled_from([None, "bridge", "veth", "tun", "vlan", "macvlan", "vxlan", "dummy", "bond", "wireguard"])
_indexes = st.integers(1, 8)
_addresses = st.lists(
    st.builds(
        lambda *parts: ipaddress.ip_interface(parts),
        st.sampled_from(
            [*map(ipaddress.ip_address, ("192.168.122.1", "10.0.0.1", "10.200.3.9", "8.8.8.8", "fd00::1"))]
        ),
        st.sampled_from([8, 24, 30, 32]),
    ),
    max_size=2,
).map(tuple)
_snapshots = st.builds(
    lambda links, defaults: Snapshot(interfaces=tuple(links), defaults=tuple(defaults)),
    st.lists(
        st.builds(
            Interface,
            index=_indexes,
            name=st.sampled_from([NAME, "eth0", "a", "b", 'c*"}accept#']),
            up=st.booleans(),
            kind=_kinds,
            lower=st.none() | _indexes,
            master=st.none() | _indexes,
            on_link=_addresses,
        ),
        max_size=8,
        unique_by=(lambda link: link.index, lambda link: link.name),
    ),
    st.lists(
        st.builds(DefaultRoute, version=st.just(4), index=_indexes, gateway=st.just("10.0.0.9"), metric=st.just(1)),
        max_size=2,
    ),
)


@given(_snapshots, st.booleans(), st.frozensets(_indexes, max_size=2))
def test_whatever_the_links_are_what_is_in_force_has_ports_for_guests_alone_and_no_way_out(
    snapshot: Snapshot, guarded: bool, before: frozenset[int]
) -> None:
    found = judge(snapshot, guarded=guarded, before=before)
    if found.bridge is None:
        return
    assert guarded
    link = next(link for link in snapshot.interfaces if link.name == NAME)
    assert (link.kind, link.index) == ("bridge", found.bridge.index)
    routed = {route.index for route in snapshot.defaults}
    assert link.index not in routed
    for port in snapshot.interfaces:
        if port.master == link.index:
            assert port.kind in {"bridge", *GUEST_KINDS}
            assert port.index not in routed
    for address in found.bridge.addresses:
        assert address in link.on_link
        assert address.is_private
        for other in snapshot.interfaces:
            same = [item.network for item in other.on_link if item.version == address.version]
            assert other.index == link.index or not any(
                address.network.subnet_of(net) or net.subnet_of(address.network)  # type: ignore[arg-type]
                for net in same
            )


@given(
    st.builds(
        lambda *parts: ipaddress.ip_interface(parts), st.ip_addresses(v=4) | st.ip_addresses(v=6), st.integers(0, 32)
    )
)
def test_no_network_of_guests_reaches_past_the_private_ranges_or_into_the_tunnel(
    address: ipaddress.IPv4Interface | ipaddress.IPv6Interface,
) -> None:
    if not may_hold_guests(address):
        with pytest.raises(ValueError, match="address"):
            GuestBridge(index=2, addresses=(address,))
        return
    GuestBridge(index=2, addresses=(address,))
    assert address.network.network_address.is_private or address.network.network_address.packed[:1] == b"\x64"
    tunnel = ipaddress.ip_network(names.TUN_IPV4_SUBNET if address.version == 4 else names.TUN_IPV6_SUBNET)
    assert not tunnel.overlaps(address.network)


@pytest.mark.parametrize("address", ["10.200.3.0/16", "10.0.0.0/8", "fd42:42:42::1/64", "fd42:42:42::/48", "fc00::/7"])
def test_a_network_that_holds_the_tunnels_is_none(address: str) -> None:
    assert not may_hold_guests(ipaddress.ip_interface(address))


@pytest.mark.parametrize("state", State)
def test_the_base_table_opens_to_a_bridge_by_index_and_network_and_to_nothing_else(state: State) -> None:
    bridge = GuestBridge(index=5, addresses=(HOST, HOST6))
    plain = make_policy(state)
    before, after = (
        build_base_table(policy) for policy in (plain, replace(plain, links=replace(plain.links, bridges=(bridge,))))
    )
    old = {(chain.name, rule.text) for chain, rule in accepting_rules(before)}
    new = {(chain.name, rule.text) for chain, rule in accepting_rules(after)} - old
    assert {chain for chain, _ in new} == {"input", names.GUESTS_CHAIN}
    for name, text in new:
        assert text.startswith(f"{'iif' if name == 'input' else 'oif'} {name_by_index(5)} ")
    for chain in after.chains:
        texts = [rule.text for rule in chain.rules]
        if chain.name in {"output", "postrouting"}:
            assert texts.index(f"jump {names.GUESTS_CHAIN}") == texts.index("jump to_wire") - 1
        if chain.name == names.GUESTS_CHAIN:
            assert texts[0] == f"meta skuid {IDENTITY.uid} return"
        if chain.name == "forward":
            assert chain in before.chains, "nothing more is forwarded"


def test_the_wire_guard_knows_bridges_only_in_one_text_with_the_bridge_guard() -> None:
    assert "table" not in render_bridge_rules(IDENTITY, ())
    text = render_bridge_rules(IDENTITY, (NAME,))
    guard = build_wire_guard(IDENTITY, bridges=(NAME,))
    assert text == build_bridge_guard(IDENTITY).render_replacement() + guard.render_replacement()
    plain = {rule.text for _, rule in accepting_rules(build_wire_guard(IDENTITY))}
    more = [rule.text for _, rule in accepting_rules(guard) if rule.text not in plain]
    assert more
    assert all(text.startswith(f'oifname "{NAME}" meta oifkind "bridge" ') for text in more)


def test_the_bridge_guard_lets_frames_by_to_guests_by_kind_and_else_what_leaves_a_card() -> None:
    guard = build_bridge_guard(IDENTITY)
    (ports,) = (chain for chain in guard.chains if chain.hook is not None)
    assert ports.hook is not None
    assert (guard.family, guard.flags, ports.hook.hook, ports.hook.policy) == ("bridge", "owner", "postrouting", "drop")
    assert [rule.text for rule in ports.rules] == [
        'meta oifkind { "veth", "tun" } accept',
        f"goto {names.FRAMES_CHAIN}",
    ]
    frames = next(chain for chain in guard.chains if chain.name == names.FRAMES_CHAIN)
    assert frames.rules[-1].text == "counter drop"


def test_the_main_table_is_asked_for_the_networks_of_guests_and_for_no_others() -> None:
    bridge = GuestBridge(index=5, addresses=(HOST, HOST6))
    more = set(build_rules(IDENTITY, list_networks((bridge,)))) - set(build_rules(IDENTITY))
    assert {(rule.destination, rule.table) for rule in more} == {
        ("192.168.122.0/24", MAIN_TABLE),
        ("fd00:122::/64", MAIN_TABLE),
    }
    assert not any(rule.odd or rule.inverted for rule in more)


@given(st.lists(hostile.names, max_size=20))
def test_whatever_a_list_holds_only_plain_names_come_out_of_it(lines: list[bytes]) -> None:
    found = parse_bridges(b"\n".join(lines))
    assert all(isinstance(name, InterfaceName) for name in found)
    assert parse_bridges(render_bridges(found).encode()) == found


@pytest.mark.skipif(os.geteuid() != 0, reason="whose file it is matters")
def test_a_list_that_others_than_root_could_have_written_allows_nothing(tmp_path: Path) -> None:
    path = tmp_path / "bridges"
    assert load_bridges(path) == ()
    path.write_text(render_bridges((NAME,)))
    path.chmod(0o644)
    assert load_bridges(path) == (NAME,)
    path.chmod(0o664)
    assert load_bridges(path) == ()
    path.chmod(0o644)
    os.chown(path, 65534, 65534)
    assert load_bridges(path) == ()
    path.unlink()
    path.symlink_to("/etc/hostname")
    assert load_bridges(path) == ()


def test_a_thousand_guests_are_judged_in_one_go() -> None:
    ports = tuple(
        Interface(index=100 + number, name=f"vnet{number}", up=True, kind="tun", master=5) for number in range(1000)
    )
    assert judge(having(*ports)).status is BridgeStatus.IN_FORCE
    last = replace(ports[-1], kind=None)
    assert judge(having(*ports[:-1], last)).detail == last.name
