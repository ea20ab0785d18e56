# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Which interface the core is bound to, and when that changes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psiphon_vpn.linux.links import find_place
from psiphon_vpn.linux.rtvalues import Address
from psiphon_vpn.network.choice import still_serves
from psiphon_vpn.network.observed import observe
from psiphon_vpn.network.uplink import (
    LOCAL_KINDS,
    DefaultRoute,
    Interface,
    Path,
    Snapshot,
    Uplink,
    choose_uplink,
    find_conflicts,
    find_outbound,
    find_wires,
)
from psiphon_vpn.policy import names

ETH = Interface(index=2, name="eth0", up=True, addresses=((4, "192.0.2.10"), (6, "2001:db8:a::/64")))
WLAN = Interface(index=3, name="wlan0", up=True, addresses=((4, "192.0.2.138"), (6, "2001:db8:b::/64")))
TUN = Interface(index=9, name=names.TUN_NAME, up=True, kind="tun", addresses=((4, "10.200.3.1"),))
LO = Interface(index=1, name="lo", up=True, addresses=((4, "127.0.0.1"),))


def route(interface: Interface, *, version: int = 4, metric: int = 100, gateway: str | None = None) -> DefaultRoute:
    default = "192.0.2.1" if version == 4 else "fe80::1"
    return DefaultRoute(version=version, index=interface.index, gateway=gateway or default, metric=metric)


def choose(*defaults: DefaultRoute, interfaces: tuple[Interface, ...] = (LO, ETH, WLAN, TUN)) -> Uplink | None:
    return choose_uplink(Snapshot(interfaces=interfaces, defaults=defaults))


def name_of(uplink: Uplink | None) -> str | None:
    return uplink.name if uplink else None


def test_without_a_default_route_there_is_no_uplink() -> None:
    assert choose() is None


def test_the_lowest_metric_wins() -> None:
    assert name_of(choose(route(ETH, metric=600), route(WLAN, metric=100))) == "wlan0"
    assert name_of(choose(route(ETH, metric=100), route(WLAN, metric=600))) == "eth0"


def test_ipv4_comes_before_ipv6_whatever_the_metric() -> None:
    assert name_of(choose(route(ETH, metric=600), route(WLAN, version=6, metric=1))) == "eth0"


def test_ipv6_alone_is_an_uplink_too() -> None:
    uplink = choose(route(WLAN, version=6))
    assert uplink is not None
    assert (uplink.name, uplink.ipv4, uplink.ipv6, uplink.gateways) == ("wlan0", False, True, ())


def test_an_interface_without_carrier_or_address_is_no_uplink() -> None:
    down, bare = replace(ETH, up=False), replace(ETH, addresses=())
    for interface in (down, bare):
        assert choose(route(ETH), interfaces=(interface,)) is None
        assert name_of(choose(route(ETH, metric=1), route(WLAN), interfaces=(interface, WLAN))) == "wlan0"


@pytest.mark.requirement("R9")
@pytest.mark.parametrize("interface", [TUN, LO], ids=["tun", "lo"])
def test_the_tunnel_and_loopback_are_never_the_uplink(interface: Interface) -> None:
    assert choose(route(interface, metric=0)) is None
    assert name_of(choose(route(interface, metric=0), route(ETH))) == "eth0"


PPP = Interface(index=8, name="ppp0", up=True, kind="ppp", headerless=True)


def test_a_point_to_point_link_without_an_address_of_its_own_borrows_one() -> None:
    ppp = DefaultRoute(version=4, index=PPP.index, gateway=None, metric=0)
    uplink = choose(ppp, interfaces=(LO, ETH, TUN, PPP))
    assert uplink is not None
    assert (uplink.name, uplink.paths) == ("ppp0", (Path(version=4, gateways=(), places=("192.0.2.10",)),))
    assert choose(ppp, interfaces=(LO, TUN, PPP)) is None, "neither loopback's address nor the tunnel's"
    moved = replace(ETH, addresses=((4, "192.0.2.11"),))
    there = choose(ppp, interfaces=(LO, moved, TUN, PPP))
    assert there is not None
    assert not still_serves(uplink, there), "another place on the network"


def test_a_point_to_point_link_with_its_own_address_does_not_care_for_others() -> None:
    ppp = DefaultRoute(version=4, index=PPP.index, gateway=None, metric=0)
    own = replace(PPP, addresses=((4, "198.51.100.99"),))
    assert choose(ppp, interfaces=(ETH, own)) == choose(ppp, interfaces=(WLAN, own))


def test_a_link_with_neighbours_borrows_no_address() -> None:
    assert choose(route(ETH), interfaces=(replace(ETH, addresses=()), WLAN)) is None


def test_ethernet_wifi_and_mobile_are_taken_in_the_order_of_the_network_managers_metrics() -> None:
    """100, 600 and 700: NetworkManager's metrics for wired, wireless and mobile."""
    wwan = Interface(index=6, name="wwan0", up=True, headerless=True, addresses=((4, "10.64.64.64"),))
    everything = (route(WLAN, metric=600), route(wwan, metric=700), route(ETH, metric=100))
    links = (LO, ETH, WLAN, wwan, TUN)
    assert name_of(choose(*everything, interfaces=links)) == "eth0"
    unplugged = (LO, replace(ETH, up=False), WLAN, wwan, TUN)
    assert name_of(choose(*everything, interfaces=unplugged)) == "wlan0"
    assert name_of(choose(*everything, interfaces=(LO, wwan, TUN))) == "wwan0"


@pytest.mark.requirement("R6")
def test_interfaces_of_containers_bridges_and_other_vpns_that_come_and_go_are_no_change() -> None:
    before = choose(route(ETH))
    for kind in ("veth", "bridge", "dummy", "wireguard", "tun", "vlan", "ipip", "macvlan"):
        other = Interface(index=50, name="other0", up=True, kind=kind, addresses=((4, "10.9.8.7"), (6, "fd00:1::/64")))
        assert choose(route(ETH), interfaces=(LO, ETH, WLAN, TUN, other)) == before


@pytest.mark.requirement("R6")
def test_a_renamed_interface_is_a_change_since_rules_and_core_know_it_by_name() -> None:
    assert choose(route(ETH)) != choose(route(ETH), interfaces=(replace(ETH, name="lan0"),))


def test_a_route_of_an_interface_that_is_gone_is_passed_over() -> None:
    assert name_of(choose(route(ETH), route(WLAN, metric=600), interfaces=(WLAN,))) == "wlan0"


@pytest.mark.requirement("R6")
def test_another_temporary_ipv6_address_of_the_same_prefix_is_no_change() -> None:
    places = [
        find_place(Address(version=6, index=2, text=text, prefix=64, scope=0, flags=0, body=b""))
        for text in ("2001:db8:a::1234", "2001:db8:a::ffff:8", "2001:db8:a:1::1")
    ]
    assert places[0] == places[1] == (6, "2001:db8:a::/64")
    assert places[2] != places[0]


@pytest.mark.requirement("R6")
def test_another_ipv4_address_gateway_prefix_or_interface_is_a_change() -> None:
    before = choose(route(ETH), route(ETH, version=6))
    moved = replace(ETH, addresses=((4, "192.0.2.11"), (6, "2001:db8:a::/64")))
    other_prefix = replace(ETH, addresses=((4, "192.0.2.10"), (6, "2001:db8:c::/64")))
    both = (route(ETH), route(ETH, version=6))
    changed = [
        choose(*both, interfaces=(moved,)),
        choose(*both, interfaces=(other_prefix,)),
        choose(route(ETH, gateway="192.0.2.2"), route(ETH, version=6)),
        choose(route(ETH), route(ETH, version=6, gateway="fe80::2")),
        choose(*both, interfaces=(replace(ETH, index=7),)),
        choose(route(ETH)),
        choose(route(WLAN)),
    ]
    assert before is not None
    assert not any(uplink is not None and still_serves(before, uplink) for uplink in changed)
    assert choose(*both) == before


def test_a_metric_that_changes_nothing_is_no_change() -> None:
    """A DHCP client that rewrites its route may give it another metric."""
    assert choose(route(ETH, metric=100)) == choose(route(ETH, metric=1024))


def test_the_gateways_are_those_of_ipv4() -> None:
    uplink = choose(route(ETH, gateway="192.0.2.1"), route(ETH, version=6))
    assert uplink is not None
    assert uplink.gateways == ("192.0.2.1",)


@pytest.mark.requirement("B4")
def test_wires_are_hardware_and_what_stands_for_it_and_inner_kinds_only_with_a_default_route() -> None:
    interfaces = (
        LO,
        TUN,
        ETH,
        Interface(index=4, name="vlan5", up=False, kind="vlan"),
        Interface(index=5, name="docker0", up=True, kind="bridge"),
        Interface(index=6, name="br-lan", up=True, kind="bridge"),
        Interface(index=7, name="veth1", up=True, kind="veth"),
        Interface(index=8, name="ppp0", up=True, kind="ppp"),
    )
    lan = DefaultRoute(version=4, index=6, gateway="192.0.2.1", metric=100)
    assert find_wires(Snapshot(interfaces=interfaces, defaults=(lan,))) == ("br-lan", "eth0", "ppp0", "vlan5")


@pytest.mark.requirement("B4")
def test_what_led_out_once_stays_a_wire_until_it_is_gone() -> None:
    inner = Interface(index=7, name="veth1", up=True, kind="veth")
    default = DefaultRoute(version=4, index=7, gateway=None, metric=0)
    led = find_outbound(Snapshot(interfaces=(ETH, inner), defaults=(default,)))
    without_route = Snapshot(interfaces=(ETH, inner))
    assert find_wires(without_route, find_outbound(without_route, led)) == ("eth0", "veth1")
    gone = Snapshot(interfaces=(ETH,))
    assert find_outbound(gone, led) == frozenset()
    assert find_wires(without_route, find_outbound(without_route, find_outbound(gone, led))) == ("eth0",)


_addresses = st.sampled_from([(4, "192.0.2.10"), (4, "192.0.2.138"), (6, "2001:db8:a::/64"), (6, "2001:db8:b::/64")])
_interfaces = st.lists(
    st.builds(
        Interface,
        index=st.integers(1, 8),
        name=st.sampled_from(["lo", names.TUN_NAME, "eth0", "eth1", "docker0"]),
        up=st.booleans(),
        kind=st.sampled_from([None, "vlan", *sorted(LOCAL_KINDS)]),
        addresses=st.lists(_addresses, unique=True, max_size=3).map(tuple),
    ),
    unique_by=(lambda interface: interface.index, lambda interface: interface.name),
    max_size=5,
)
_defaults = st.lists(
    st.builds(
        DefaultRoute,
        version=st.sampled_from([4, 6]),
        index=st.integers(1, 9),
        gateway=st.sampled_from([None, "192.0.2.1", "fe80::1"]),
        metric=st.sampled_from([0, 100, 600]),
    ),
    max_size=5,
)
snapshots = st.builds(Snapshot, interfaces=_interfaces.map(tuple), defaults=_defaults.map(tuple))


@pytest.mark.requirement("R6", "R9")
@given(snapshots)
def test_an_uplink_is_always_up_addressed_led_to_by_a_default_route_and_a_wire(snapshot: Snapshot) -> None:
    uplink = choose_uplink(snapshot)
    if uplink is None:
        return
    interface = next(interface for interface in snapshot.interfaces if interface.index == uplink.index)
    assert interface.up
    assert interface.name == uplink.name
    assert uplink.name != names.TUN_NAME
    assert uplink.index != 1
    assert uplink.index in {default.index for default in snapshot.defaults}
    assert uplink.ipv4 or uplink.ipv6
    assert uplink.name in find_wires(snapshot), "the egress guard stands on every uplink"


@given(snapshots)
def test_the_order_in_which_the_kernel_lists_things_decides_nothing(snapshot: Snapshot) -> None:
    shuffled = replace(
        snapshot, interfaces=tuple(reversed(snapshot.interfaces)), defaults=tuple(reversed(snapshot.defaults))
    )
    assert choose_uplink(shuffled) == choose_uplink(snapshot)
    assert find_wires(shuffled) == find_wires(snapshot)


@pytest.mark.requirement("B4", "R9")
def test_a_card_that_has_the_tunnels_name_is_guarded_and_no_uplink() -> None:
    card = Interface(index=2, name=names.TUN_NAME, up=True, addresses=((4, "192.0.2.10"),))
    route = DefaultRoute(version=4, index=2, gateway="192.0.2.1", metric=100)
    snapshot = Snapshot(interfaces=(card,), defaults=(route,))
    assert find_wires(snapshot) == (names.TUN_NAME,)
    assert choose_uplink(snapshot) is None


@pytest.mark.requirement("B4")
@given(snapshots)
def test_the_tunnel_and_loopback_are_never_wires(snapshot: Snapshot) -> None:
    wires = find_wires(snapshot)
    ours = {
        interface.name
        for interface in snapshot.interfaces
        if interface.index == 1 or (interface.name == names.TUN_NAME and interface.kind == "tun")
    }
    assert not ours & set(wires)
    assert list(wires) == sorted(set(wires))


@pytest.mark.requirement("R6")
def test_another_gateway_of_the_same_metric_is_a_hop_and_no_transition_and_a_worse_one_is_neither() -> None:
    before = choose(route(ETH))
    more = choose(route(ETH), route(ETH, gateway="192.0.2.2"))
    worse = choose(route(ETH), route(ETH, gateway="192.0.2.2", metric=1024))
    assert before is not None
    assert more is not None
    assert worse is not None
    assert still_serves(before, more)
    assert still_serves(before, worse)
    assert not still_serves(more, before), "any of the earlier gateways may be in use"
    assert (before.hops, more.hops, worse.hops) == (("192.0.2.1",), ("192.0.2.1", "192.0.2.2"), ("192.0.2.1",))


@pytest.mark.requirement("R10")
def test_a_network_with_the_tunnels_own_addresses_is_known() -> None:
    def find(link: Interface, *routes: DefaultRoute) -> tuple[str, ...]:
        return find_conflicts(Snapshot(interfaces=(LO, TUN, link), defaults=routes))

    for place in ((4, "10.200.3.57"), (6, "fd42:42:42::/64")):
        assert find(replace(ETH, addresses=(place,))) == (ETH.name,)
        assert find(replace(ETH, addresses=(place,), up=False)) == ()
    assert find(ETH, replace(route(ETH), gateway="10.200.3.1")) == (ETH.name,)
    assert find(ETH, route(ETH), replace(route(ETH, version=6), gateway="fe80::1")) == ()
    assert find(replace(ETH, addresses=((4, "10.200.4.1"), (6, "fd42:42:43::/64")))) == ()
    assert find(replace(ETH, addresses=())) == ()


class CountedLinks(tuple[Interface, ...]):
    """Counts how often somebody goes through all interfaces."""

    passes: list[int]

    def __iter__(self) -> Iterator[Interface]:
        self.passes.append(1)
        return super().__iter__()


@pytest.mark.parametrize("ports", [False, True])
def test_looking_takes_no_more_passes_over_many_interfaces_than_over_few(ports: bool) -> None:
    bridge = replace(ETH, kind="bridge")

    def count(number: int) -> int:
        more = [
            Interface(index=100 + item, name=f"more{item}", up=True, kind="veth", master=2 if ports else None)
            for item in range(number)
        ]
        links = CountedLinks((LO, bridge, TUN, *more))
        links.passes = []
        observe(Snapshot(interfaces=links, defaults=(route(bridge),)), outbound=frozenset({2}))
        return len(links.passes)

    assert count(200) == count(2) > 0
