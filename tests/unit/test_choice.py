# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Which parts of an uplink are in use, and which of several uplinks is taken."""

from __future__ import annotations

import socket
import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.state_machine_watch import UPLINK_A, UPLINK_B, Watch, configure, see

from psiphon_vpn.linux.core_sockets import parse_socket, read_core_uses
from psiphon_vpn.network.choice import SocketUse, find_next, find_patience, pick_uplink, still_serves
from psiphon_vpn.network.observed import observe
from psiphon_vpn.network.uplink import (
    DefaultRoute,
    Interface,
    Path,
    Snapshot,
    Uplink,
    find_ownerless_uplink,
    find_tunnelled_uplink,
    find_vrf_uplink,
    list_uplinks,
)
from psiphon_vpn.policy.model import State
from psiphon_vpn.policy.routing import IPV4, IPV6
from psiphon_vpn.policy.values import InterfaceName
from psiphon_vpn.service import events as ev
from psiphon_vpn.service.events import Timer
from psiphon_vpn.service.reasons import Reason, explain
from psiphon_vpn.service.status import explain_no_uplink

_places = {
    IPV4: st.sets(st.sampled_from(["192.0.2.10", "192.0.2.11", "192.0.2.12"]), min_size=1),
    IPV6: st.sets(st.sampled_from([f"2001:db8:{number}::/64" for number in range(5)]), min_size=1),
}
_gateways = {
    IPV4: st.sets(st.sampled_from(["192.0.2.1", "192.0.2.2"])),
    IPV6: st.sets(st.sampled_from(["fe80::1", "fe80::2"])),
}


def _paths(version: int) -> st.SearchStrategy[Path]:
    return st.builds(
        Path,
        version=st.just(version),
        gateways=_gateways[version].map(lambda found: tuple(sorted(found))),
        places=_places[version].map(lambda found: tuple(sorted(found))),
    )


uplinks = st.builds(
    Uplink,
    index=st.just(2),
    name=st.just(InterfaceName("eth0")),
    paths=st.one_of(st.tuples(_paths(IPV4)), st.tuples(_paths(IPV6)), st.tuples(_paths(IPV4), _paths(IPV6))),
)
uses = st.sets(
    st.one_of(
        st.builds(SocketUse, st.just(IPV4), st.sampled_from([None, "192.0.2.10", "192.0.2.11"])),
        st.builds(SocketUse, st.just(IPV6), st.sampled_from([None, "2001:db8:0::/64", "2001:db8:1::/64"])),
    )
)


@pytest.mark.requirement("R6")
@given(uplinks, uplinks, uses)
def test_what_is_gained_is_never_a_transition(before: Uplink, more: Uplink, used: set[SocketUse]) -> None:
    """Whatever is added to gateways, places and IP versions."""
    extra = {path.version: path for path in more.paths}
    grown = []
    for version in (IPV4, IPV6):
        ways = [
            way for way in (next((p for p in before.paths if p.version == version), None), extra.get(version)) if way
        ]
        if ways:
            places = tuple(sorted({place for way in ways for place in way.places}))
            gateways = tuple(sorted({gateway for way in ways for gateway in way.gateways})) if ways[0].gateways else ()
            grown.append(Path(version=version, gateways=gateways, places=places))
    now = replace(before, paths=tuple(grown))
    there = {(path.version, place) for path in now.paths for place in path.places}
    real = {use for use in used if use.place is None or (use.version, use.place) in there}
    real = {use for use in real if use.version in now.versions}
    assert still_serves(before, now)
    assert still_serves(before, now, real)


@pytest.mark.requirement("R6")
@given(uplinks, uplinks, uses)
def test_what_is_in_use_and_gone_is_always_a_transition(before: Uplink, now: Uplink, used: set[SocketUse]) -> None:
    """Computed independently: no address of a socket, and no gateway of its version, may be missing."""
    had = {path.version: path for path in before.paths}
    has = {path.version: path for path in now.paths}
    versions = {use.version for use in used} or {IPV4, IPV6}
    for use in used:
        if use.version not in has or (use.place is not None and use.place not in has[use.version].places):
            assert not still_serves(before, now, used)
    for version in versions & set(had):
        lost = version not in has or set(had[version].gateways) - set(has[version].gateways)
        blind = not used or SocketUse(version, None) in used
        if lost or (blind and set(had[version].places) - set(has[version].places)):
            assert not still_serves(before, now, used)


@pytest.mark.requirement("R6")
@given(uplinks, uses)
def test_another_interface_is_a_transition_whatever_is_in_use(before: Uplink, used: set[SocketUse]) -> None:
    assert still_serves(before, before)
    for now in (replace(before, index=3), replace(before, name=InterfaceName("eth1"))):
        assert not still_serves(before, now, used)


@pytest.mark.requirement("R6")
def test_a_prefix_that_nobody_uses_may_go() -> None:
    path4 = Path(version=IPV4, gateways=("192.0.2.1",), places=("192.0.2.10",))
    path6 = Path(version=IPV6, gateways=("fe80::1",), places=("2001:db8:0::/64", "2001:db8:1::/64"))
    before = Uplink(index=2, name=InterfaceName("eth0"), paths=(path4, path6))
    less = replace(before, paths=(path4, replace(path6, places=("2001:db8:1::/64",))))
    without = replace(before, paths=(path4,))
    by_ipv4 = {SocketUse(IPV4, "192.0.2.10")}
    assert not still_serves(before, less), "nobody knows what is in use"
    assert still_serves(before, less, by_ipv4)
    assert still_serves(before, without, by_ipv4)
    assert still_serves(before, less, by_ipv4 | {SocketUse(IPV6, "2001:db8:1::/64")})
    assert not still_serves(before, less, by_ipv4 | {SocketUse(IPV6, "2001:db8:0::/64")})
    assert not still_serves(before, less, {SocketUse(IPV6, None)})


@pytest.mark.requirement("R6")
def test_advertisements_without_end_do_not_disturb_an_open_tunnel() -> None:
    """One more prefix every two seconds, a thousand times: no move, no effect, no unrest."""
    watch = Watch()
    watch.to_open()
    used = frozenset({SocketUse(IPV4, "192.0.2.10")})
    opened, seen = watch.model, UPLINK_A
    for number in range(1000):
        path6 = Path(version=IPV6, gateways=("fe80::1",), places=(f"2001:db8:{number:x}::/64",))
        seen = replace(UPLINK_A, paths=(*UPLINK_A.paths, path6))
        effects = watch.tell(see(seen, uses=used))
        if number == 0:
            # A gained IP version is no transition, but the rules name its gateway from now on.
            assert watch.model.state is State.VERIFYING
            watch.tell(ev.Verified(watch.model.verification))
        else:
            assert effects == ()
    assert (watch.model.state, watch.model.unrest, watch.model.core) == (State.OPEN, opened.unrest, opened.core)
    assert watch.model.uplink == seen, "the rules name what is there now"
    watch.tell(see(replace(seen, paths=seen.paths[1:]), uses=used))
    assert watch.model.state is State.CONNECTING


def _socket(family: int, source: str, *, uid: int = 7, bound: int = 2) -> bytes:
    packed = socket.inet_pton(family, source).ljust(16, b"\0")
    return struct.pack("=BBBB4x16s16sI8xIIIII", family, 1, 0, 0, packed, bytes(16), bound, 0, 0, 0, uid, 0)


def test_sockets_of_the_core_on_the_uplink_are_distinguished_from_others() -> None:
    four, six = socket.AF_INET, socket.AF_INET6
    for message, expected in (
        (_socket(four, "192.0.2.10"), {SocketUse(IPV4, "192.0.2.10")}),
        (_socket(six, "2001:db8:a::7"), {SocketUse(IPV6, "2001:db8:a::/64")}),
        (_socket(six, "::ffff:192.0.2.10"), {SocketUse(IPV4, "192.0.2.10")}),
        (_socket(four, "0.0.0.0"), {SocketUse(IPV4, None)}),
        (_socket(six, "::"), {SocketUse(IPV4, None), SocketUse(IPV6, None)}),
        (_socket(four, "192.0.2.10", uid=0), set()),
        (_socket(four, "192.0.2.10", bound=0), set()),
    ):
        assert parse_socket(message, uid=7, index=2) == expected


def test_the_kernel_lists_sockets_of_any_user_who_has_none() -> None:
    """This works without privileges too. A test in the laboratory shows that it finds existing ones."""
    assert read_core_uses(4_000_000_000, 1) == frozenset()


UPLINKS = (UPLINK_A, UPLINK_B, replace(UPLINK_B, index=4, name=InterfaceName("tun0"), tunnel=True))


def test_uplinks_that_bring_no_tunnel_are_tried_one_after_the_other_and_then_from_the_best_again() -> None:
    current, unsuccessful = UPLINK_A, frozenset[int]()
    tried = []
    for _ in range(6):
        found = find_next(current, UPLINKS, named="", unsuccessful=unsuccessful)
        assert found is not None
        current, unsuccessful = found
        assert pick_uplink(UPLINKS, named="", unsuccessful=unsuccessful) in {current, UPLINK_A}
        tried.append(current.name)
    assert tried == ["eth1", "tun0", "eth0", "eth1", "tun0", "eth0"]
    assert find_next(UPLINK_A, UPLINKS[:1], named="", unsuccessful=frozenset()) is None
    assert find_next(UPLINK_B, UPLINKS, named="eth1", unsuccessful=frozenset()) is None, "only the named one"
    patience = [find_patience(rounds) for rounds in range(20)]
    assert patience == sorted(patience)
    assert patience[-1] <= 480


def test_a_card_comes_before_another_vpn_whatever_the_metrics() -> None:
    eth = Interface(index=2, name="eth0", up=True, addresses=((4, "192.0.2.10"), (6, "2001:db8:a::/64")))
    defaults = (
        DefaultRoute(version=4, index=9, gateway="10.8.0.1", metric=50),
        DefaultRoute(version=4, index=2, gateway="192.0.2.1", metric=600),
    )
    for kind, headerless in (("tun", True), ("tun", False), ("ppp", True)):
        vpn = Interface(index=9, name="vpn0", up=True, kind=kind, headerless=headerless, addresses=((4, "10.8.0.2"),))
        for better in (defaults, (defaults[0], replace(defaults[1], version=6, gateway="fe80::1"))):
            found = list_uplinks(Snapshot(interfaces=(eth, vpn), defaults=better))
            assert [uplink.name for uplink in found] == ["eth0", "vpn0"]
        alone = list_uplinks(Snapshot(interfaces=(eth, vpn), defaults=defaults[:1]))
        assert [uplink.name for uplink in alone] == ["vpn0"]
    mobile = Interface(index=9, name="wwan0", up=True, headerless=True, addresses=((4, "10.8.0.2"),))
    for card_kind in (None, "wwan", "rmnet"):
        links = (eth, replace(mobile, kind=card_kind))
        assert list_uplinks(Snapshot(interfaces=links, defaults=defaults))[0].name == "wwan0"


def test_an_uplink_that_brings_no_tunnel_gives_way_and_the_one_that_does_stays() -> None:
    watch = Watch()
    for event in (configure(300), see(UPLINK_A, UPLINK_B), ev.UserStart()):
        watch.tell(event)
    first = watch.model.core
    watch.tell(ev.TimerFired(Timer.GIVE_WAY))
    assert (watch.model.state, watch.model.reason, watch.model.uplink) == (
        State.CONNECTING,
        Reason.UPLINK_BARREN,
        UPLINK_B,
    )
    assert watch.model.core > first
    assert watch.tell(see(UPLINK_A, UPLINK_B)) == (), "the same snapshot again is no change"
    watch.tell(ev.CoreTunnels(watch.model.core, 1))
    watch.tell(ev.Verified(watch.model.verification))
    assert watch.model.state is State.OPEN
    assert watch.tell(see(UPLINK_A, UPLINK_B)) == ()
    watch.tell(see(UPLINK_A))
    assert watch.model.uplink == UPLINK_A, "the uplink with the tunnel is lost, so the other counts again"
    assert watch.model.unsuccessful == frozenset()


@pytest.mark.parametrize("fault", [None, Reason.UPLINK_PROGRAM])
def test_an_uplink_on_which_cores_end_again_and_again_gives_way_ever_more_slowly(fault: Reason | None) -> None:
    watch = Watch()
    for event in (configure(300), see(UPLINK_A, UPLINK_B), ev.UserStart()):
        watch.tell(event)
    used = []
    for _ in range(12):
        used.append(watch.model.uplink)
        watch.tell(ev.CoreFault(watch.model.core, fault))
        watch.tell(ev.CoreExited(watch.model.core, "code 0"))
        assert watch.model.state is State.LOCKED
        watch.tell(see(UPLINK_A, UPLINK_B))
        assert watch.model.state is State.LOCKED, "no new network, so no reason to stop waiting"
        watch.tell(ev.TimerFired(Timer.RETRY))
    assert used[:3] == [UPLINK_A] * 3
    assert UPLINK_B in used[3:]
    assert UPLINK_A in used[4:]
    assert watch.model.failures == 12, "the pauses grow"


def test_a_named_uplink_is_waited_for_and_no_other_is_taken() -> None:
    watch = Watch()
    watch.tell(configure(300, "tun0"))
    watch.tell(see(UPLINK_A, UPLINK_B))
    assert (watch.model.state, watch.model.reason, watch.model.detail) == (State.LOCKED, Reason.UPLINK_ABSENT, "tun0")
    watch.tell(see(*UPLINKS))
    assert (watch.model.state, watch.model.uplink) == (State.CONNECTING, UPLINKS[2])
    watch.tell(ev.TimerFired(Timer.GIVE_WAY))
    assert watch.model.uplink == UPLINKS[2]
    watch.tell(configure(300, ""))
    assert watch.model.uplink == UPLINK_A


@pytest.mark.parametrize("above", [None, "vlan", "bond", "bridge"])
def test_no_uplink_stands_on_a_device_that_hides_whose_packets_it_sends(above: str | None) -> None:
    """MACsec (S7): the core would connect, and the card refuse it, silently and for ever."""
    place = ((IPV4, "192.0.2.10"),)
    card = Interface(index=2, name="eth0", up=True)
    sealed = Interface(index=3, name="ms0", up=True, kind="macsec", lower=2, addresses=place)
    upper = Interface(index=4, name="up0", up=True, kind=above, addresses=place, lower=3 if above == "vlan" else None)
    if above in {"bond", "bridge"}:
        sealed = replace(sealed, master=4)
    led = 4 if above else 3
    routes = (DefaultRoute(version=IPV4, index=led, gateway="192.0.2.1", metric=1),)
    snapshot = Snapshot(interfaces=(card, sealed, upper), defaults=routes)
    assert list_uplinks(snapshot) == ()
    assert find_ownerless_uplink(snapshot) == f"{'up0' if above else 'ms0'}, MACsec"
    plain = replace(sealed, kind="vlan")
    other = Snapshot(interfaces=(card, plain, upper), defaults=routes)
    assert [uplink.index for uplink in list_uplinks(other)] == [led]
    assert find_ownerless_uplink(other) is None


@pytest.mark.requirement("R1", "R5")
@pytest.mark.parametrize("kind", ["wireguard", "gre", "ipip", "sit", "vxlan", "xfrm"])
@pytest.mark.parametrize("tagged", [False, True])
def test_no_uplink_is_a_tunnel_of_the_kernels_whose_own_packets_would_leave_by_a_card(kind: str, tagged: bool) -> None:
    """They are not psiphon-user's: the service would connect for ever. Without a card here they leave elsewhere."""
    place = ((IPV4, "192.0.2.12"),)
    card = Interface(index=2, name="eth0", up=True, addresses=((IPV4, "192.0.2.10"),))
    tunnel = Interface(index=3, name="t0", up=True, kind=kind, headerless=True, addresses=place)
    upper = Interface(index=4, name="up0", up=True, kind="vlan", lower=3, addresses=place)
    led = upper if tagged else tunnel
    routes = (DefaultRoute(version=IPV4, index=led.index, gateway=None, metric=1),)
    snapshot = Snapshot(interfaces=(card, tunnel, upper), defaults=routes)
    assert list_uplinks(snapshot) == ()
    named = find_tunnelled_uplink(snapshot)
    assert named is not None
    assert named.startswith(f"{led.name}, ")
    for elsewhere in (replace(card, up=False), replace(card, kind="bridge")):
        other = Snapshot(interfaces=(elsewhere, tunnel, upper), defaults=routes)
        assert [uplink.index for uplink in list_uplinks(other)] == [led.index]
        assert find_tunnelled_uplink(other) is None


def test_a_bridge_of_a_card_and_a_tunnel_is_an_uplink() -> None:
    card = Interface(index=2, name="eth0", up=True, master=4)
    tunnel = Interface(index=3, name="t0", up=True, kind="vxlan", master=4)
    bridge = Interface(index=4, name="br0", up=True, kind="bridge", addresses=((IPV4, "192.0.2.10"),))
    routes = (DefaultRoute(version=IPV4, index=4, gateway="192.0.2.1", metric=1),)
    snapshot = Snapshot(interfaces=(card, tunnel, bridge), defaults=routes)
    assert [uplink.index for uplink in list_uplinks(snapshot)] == [4]
    assert find_tunnelled_uplink(snapshot) is None


def test_a_card_in_a_vrf_is_named_only_while_it_is_up_with_an_address() -> None:
    vrf = Interface(index=3, name="blue", up=True, kind="vrf")
    card = Interface(index=2, name="eth0", up=True, master=3, addresses=((IPV4, "192.0.2.10"),))
    assert find_vrf_uplink(Snapshot(interfaces=(vrf, card))) == "eth0"
    for other in (replace(card, up=False), replace(card, addresses=()), replace(card, master=None)):
        assert find_vrf_uplink(Snapshot(interfaces=(vrf, other))) is None
    assert find_vrf_uplink(Snapshot(interfaces=(replace(vrf, kind="bridge"), card))) is None


def test_the_status_says_why_there_is_no_uplink_and_names_what_stands_in_its_place() -> None:
    place = ((IPV4, "192.0.2.10"),)
    card = Interface(index=2, name="eth0", up=True, addresses=place)
    tunnel = Interface(index=3, name="wg0", up=True, kind="wireguard", headerless=True, addresses=place)
    led = (DefaultRoute(version=IPV4, index=3, gateway=None, metric=1),)
    blue = Interface(index=4, name="blue", up=True, kind="vrf")
    for snapshot, expected in (
        (Snapshot(interfaces=(card,)), (Reason.NO_UPLINK, "")),
        (Snapshot(interfaces=(card, tunnel), defaults=led), (Reason.UPLINK_TUNNELLED, "wg0, WireGuard")),
        (Snapshot(interfaces=(replace(card, master=4), blue)), (Reason.UPLINK_VRF, "eth0")),
    ):
        assert explain_no_uplink(observe(snapshot, outbound=frozenset())) == expected
        assert explain(expected[0], expected[1]).next_step
