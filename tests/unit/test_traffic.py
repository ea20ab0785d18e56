# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The filter at a card's traffic control: its program's verdict on frames, and how it is installed and removed."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import struct
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psiphon_vpn.linux import card_filters, loading
from psiphon_vpn.linux.card_filters import CardFilters
from psiphon_vpn.linux.loading import PolicyLoader
from psiphon_vpn.linux.lock import EnforcementError
from psiphon_vpn.linux.lockstate import list_marking
from psiphon_vpn.linux.monitor import parse_changes
from psiphon_vpn.linux.netlink import HEADER, read_attributes
from psiphon_vpn.linux.nft import RulesetError
from psiphon_vpn.linux.refused_wires import RefusedWires
from psiphon_vpn.linux.routes import RoutingError
from psiphon_vpn.linux.tcvalues import (
    BPF,
    CLSACT,
    EGRESS,
    EVERY_PROTOCOL,
    INGRESS,
    RTM_DELQDISC,
    RTM_DELTFILTER,
    RTM_NEWQDISC,
    RTM_NEWTFILTER,
    TCMSG,
    Place,
    TcFilter,
    decode_filter,
    decode_place,
    encode_filter,
)
from psiphon_vpn.linux.traffic import (
    HANDLE,
    HANDLE_IN_OWN_PLACE,
    OWN_HANDLES,
    PROGRAMS,
    Obstacle,
    Request,
    Standing,
    Traffic,
    can_filter,
    judge,
)
from psiphon_vpn.policy import names
from psiphon_vpn.policy.model import Identity, Links, Policy, State
from psiphon_vpn.policy.traffic_control import DROP, GO_ON, Filter, build_program, encode_program
from psiphon_vpn.policy.values import parse_names

OK = 0
"""TC_ACT_OK: what a program ends with that reads beyond the end of a frame."""
MARKED, SOURCES = Filter.MARKED, Filter.SOURCES


# -- the program ------------------------------------------------------------------------------------------------------


def run_program(kind: Filter, *, mark: int, protocol: int, packet: bytes) -> int:
    """The verdict of the kernel (bpf(4), linux/filter.h). packet: from the network header on."""
    accumulator, place = 0, 0
    program = build_program(kind)
    for _ in program:
        code, if_true, if_false, operand = program[place]
        place += 1
        if code in {0x20, 0x28, 0x30}:
            size = {0x20: 4, 0x28: 2, 0x30: 1}[code]
            if operand == 0xFFFFF000:
                accumulator = protocol
            elif operand == 0xFFFFF014:
                accumulator = mark
            else:
                offset = operand - 0xFFF00000
                if offset + size > len(packet):
                    return OK
                accumulator = int.from_bytes(packet[offset : offset + size])
        elif code == 0x54:
            accumulator &= operand
        elif code == 0x15:
            place += if_true if accumulator == operand else if_false
        elif code == 0x45:
            place += if_true if accumulator & operand else if_false
        else:
            assert code == 0x06
            return operand
    raise AssertionError("the program does not end")


def make_packet(source: str) -> tuple[int, bytes]:
    """Protocol and header of a packet from an address."""
    address = ipaddress.ip_address(source)
    if address.version == 4:
        return 0x0800, b"\x45" + bytes(11) + address.packed + bytes(4)
    return 0x86DD, b"\x60" + bytes(7) + address.packed + bytes(16)


OURS = ("10.200.3.1", "10.200.3.255", "127.0.0.1", "127.1.2.3", "fd42:42:42::1", "fd42:42:42::ffff:1", "::1")
OTHERS = ("10.200.4.1", "10.200.2.255", "126.0.0.1", "128.0.0.1", "192.0.2.1", "0.0.0.0",
          "fd42:42:42:1::1", "fd42:42:43::1", "::2", "::", "2001:db8::1", "fe80::1")  # fmt: skip


@pytest.mark.requirement("R7", "R9", "R10", "B4")
@pytest.mark.parametrize("kind", Filter)
@pytest.mark.parametrize("source", OURS)
def test_a_source_of_the_tunnels_or_of_loopbacks_is_dropped_with_and_without_the_mark(
    kind: Filter, source: str
) -> None:
    protocol, packet = make_packet(source)
    for mark in (0, names.ACCEPTED_BIT):
        assert run_program(kind, mark=mark, protocol=protocol, packet=packet) == DROP
        for tag in (0x8100, 0x88A8):
            tagged = b"\x40\x05" + protocol.to_bytes(2) + packet
            assert run_program(kind, mark=mark, protocol=tag, packet=tagged) == DROP, "the network header is the tag"
            assert run_program(kind, mark=mark, protocol=tag, packet=packet) == DROP, "the network header is behind it"


@pytest.mark.parametrize("source", OTHERS)
def test_another_source_goes_on_where_the_mark_is_there_or_not_asked_for(source: str) -> None:
    protocol, packet = make_packet(source)
    for kind, mark, says in ((MARKED, names.ACCEPTED_BIT, GO_ON), (MARKED, 0, DROP), (SOURCES, 0, GO_ON)):
        assert run_program(kind, mark=mark, protocol=protocol, packet=packet) == says
        assert run_program(kind, mark=mark, protocol=0x8100, packet=packet) == says


@pytest.mark.requirement("B4")
@given(mark=st.integers(0, 0xFFFFFFFF), protocol=st.integers(0, 0xFFFF), packet=st.binary(max_size=60))
def test_without_the_bit_nothing_goes_on_and_no_frame_makes_a_program_go_wrong(
    mark: int, protocol: int, packet: bytes
) -> None:
    says = run_program(MARKED, mark=mark, protocol=protocol, packet=packet)
    assert says == DROP if not mark & names.ACCEPTED_BIT else says in {DROP, GO_ON, OK}
    assert run_program(SOURCES, mark=mark, protocol=protocol, packet=packet) in {DROP, GO_ON, OK}


@pytest.mark.parametrize("protocol", [0x0806, 0x888E, 0x8863, 0x8864, 0x0003])
def test_what_is_no_ip_goes_on_by_its_mark_alone(protocol: int) -> None:
    for kind, mark, says in ((MARKED, names.ACCEPTED_BIT, GO_ON), (MARKED, 0, DROP), (SOURCES, 0, GO_ON)):
        assert run_program(kind, mark=mark, protocol=protocol, packet=bytes(42)) == says


# -- a kernel of values ------------------------------------------------------------------------------------------------


@dataclass
class FakeKernel:
    """A fake of the kernel's filters; a request in `refuse` is answered with an error number."""

    places: dict[int, str] = field(default_factory=dict)
    filters: list[TcFilter] = field(default_factory=list)
    refuse: dict[int, int] = field(default_factory=dict)
    writes: list[list[int]] = field(default_factory=list)

    async def list_places(self) -> tuple[Place, ...]:
        return tuple(Place(index=index, kind=kind) for index, kind in self.places.items())

    async def list_filters(self, index: int, parent: int) -> tuple[TcFilter, ...]:
        found = [item for item in self.filters if (item.index, item.parent) == (index, parent)]
        return tuple(sorted(found, key=lambda item: item.preference))

    def change(self, requests: Collection[Request]) -> list[int]:
        self.writes.append([kind for kind, _, _ in requests])
        return [self.refuse.get(kind) or self._do(kind, flags, body) for kind, flags, body in requests]

    def _do(self, kind: int, flags: int, body: bytes) -> int:
        _, index, handle, parent, _info = TCMSG.unpack_from(body)
        if kind == RTM_NEWQDISC:
            if index in self.places:
                return errno.EEXIST
            self.places[index] = CLSACT
        elif kind == RTM_DELQDISC:
            if self.places.pop(index, None) is None:
                return errno.ENOENT
            self.filters = [item for item in self.filters if item.index != index]
        else:
            if self.places.get(index) != CLSACT:
                return errno.EINVAL
            same = [item for item in self.filters if (item.index, item.parent, item.handle) == (index, parent, handle)]
            if kind == RTM_DELTFILTER and not same:
                return errno.ENOENT
            self.filters = [item for item in self.filters if item not in same]
            if kind == RTM_NEWTFILTER:
                made = decode_filter(RTM_NEWTFILTER, body)
                assert made is not None
                self.filters.insert(0, made)
        return 0


FOREIGN = TcFilter(index=2, parent=EGRESS, preference=5, protocol=EVERY_PROTOCOL, kind="u32", handle=0x80000800)


def fit(kernel: FakeKernel, wanted: dict[int, Filter], traffic: Traffic | None = None) -> Traffic:
    traffic = traffic or Traffic(kernel)
    asyncio.run(traffic.fit(wanted))
    return traffic


def test_a_filter_is_put_at_each_card_in_one_write_and_read_back() -> None:
    kernel = FakeKernel()
    traffic = fit(kernel, {2: MARKED, 3: SOURCES})
    assert traffic.standings == {2: Standing(filter=MARKED), 3: Standing(filter=SOURCES)}
    assert kernel.writes == [[RTM_NEWQDISC, RTM_NEWTFILTER]] * 2
    assert {(item.preference, item.handle) for item in kernel.filters} == {(1, HANDLE_IN_OWN_PLACE)}
    assert asyncio.run(traffic.fit({2: MARKED, 3: SOURCES})) is False
    assert len(kernel.writes) == 2


def test_all_of_it_is_taken_away_again_and_nothing_of_others() -> None:
    kernel = FakeKernel(places={2: CLSACT, 4: CLSACT}, filters=[FOREIGN, replace(FOREIGN, index=4)])
    traffic = fit(kernel, {2: MARKED, 3: MARKED})
    assert [item.handle for item in kernel.filters if item.index == 2] == [HANDLE, FOREIGN.handle]
    asyncio.run(traffic.remove())
    assert kernel.places == {2: CLSACT, 4: CLSACT}
    assert kernel.filters == [FOREIGN, replace(FOREIGN, index=4)]


@pytest.mark.parametrize("parent", [INGRESS, EGRESS])
def test_a_place_of_ours_stays_where_somebody_put_a_filter_into_it(parent: int) -> None:
    kernel = FakeKernel()
    fit(kernel, {2: MARKED})
    kernel.filters.append(replace(FOREIGN, parent=parent))
    asyncio.run(Traffic(kernel).remove())
    assert (kernel.places, kernel.filters) == ({2: CLSACT}, [replace(FOREIGN, parent=parent)])


def test_a_fresh_daemon_knows_the_filters_of_the_one_before_by_their_handle() -> None:
    kernel = FakeKernel()
    fit(kernel, {2: MARKED, 3: MARKED})
    writes = len(kernel.writes)
    traffic = fit(kernel, {2: MARKED})
    assert [item.index for item in kernel.filters] == [2]
    assert kernel.places == {2: CLSACT}
    assert kernel.writes[writes:] == [[RTM_DELQDISC]]
    assert traffic.standings == {2: Standing(filter=MARKED)}


def test_before_a_guard_goes_its_filter_goes_also_one_that_a_daemon_before_left() -> None:
    kernel = FakeKernel()
    traffic = fit(kernel, {2: MARKED, 3: MARKED, 4: SOURCES})
    asyncio.run(traffic.shed([3]))
    assert {item.index for item in kernel.filters} == {3, 4}
    asyncio.run(Traffic(kernel).shed([]))
    assert {item.index for item in kernel.filters} == {4}, "a filter that requires no mark cuts nobody off"


def test_a_filter_changes_its_kind_in_place() -> None:
    kernel = FakeKernel()
    traffic = fit(kernel, {2: MARKED})
    fit(kernel, {2: SOURCES}, traffic)
    assert kernel.writes[-1] == [RTM_NEWTFILTER]
    assert traffic.standings == {2: Standing(filter=SOURCES)}
    assert len(kernel.filters) == 1


def test_what_somebody_changed_is_put_back_and_reported() -> None:
    kernel = FakeKernel()
    traffic = fit(kernel, {2: MARKED})
    for places in ({}, {2: CLSACT}):
        kernel.places, kernel.filters = places, []
        traffic.doubt()
        assert asyncio.run(traffic.fit({2: MARKED})) is True
        assert traffic.standings == {2: Standing(filter=MARKED)}
    program = kernel.filters[0].program
    kernel.filters = [replace(kernel.filters[0], program=bytes(8))]
    traffic.doubt()
    assert asyncio.run(traffic.fit({2: MARKED})) is True
    assert kernel.filters[0].program == program


@pytest.mark.parametrize(
    ("place", "filters", "preference", "after"),
    [
        (CLSACT, [replace(FOREIGN, preference=1)], 2, True),
        (CLSACT, [replace(FOREIGN, preference=1), replace(FOREIGN, preference=2)], 3, True),
        (CLSACT, [replace(FOREIGN, preference=1, kind=BPF, handle=1)], 1, False),
        (CLSACT, [replace(FOREIGN, preference=1, kind=BPF, handle=1, protocol=8)], 2, True),
        (CLSACT, [replace(FOREIGN, preference=1, chain=7)], 1, False),
        (CLSACT, [FOREIGN], 1, False),
    ],
)
def test_filters_of_others_stay_and_one_that_is_asked_before_ours_is_reported(
    place: str, filters: list[TcFilter], preference: int, after: bool
) -> None:
    kernel = FakeKernel(places={2: place}, filters=list(filters))
    traffic = fit(kernel, {2: MARKED})
    own = [item for item in kernel.filters if item.handle in OWN_HANDLES]
    assert [item.preference for item in own] == [preference]
    assert traffic.standings == {2: Standing(filter=MARKED, after_others=after)}
    assert [item for item in kernel.filters if item not in own] == filters


def test_what_keeps_a_filter_away_is_named_and_costs_only_that_card() -> None:
    kernel = FakeKernel(places={2: "ingress"})
    traffic = fit(kernel, {2: MARKED, 3: MARKED})
    assert traffic.standings[2].obstacle is Obstacle.INGRESS
    assert traffic.standings[3] == Standing(filter=MARKED)
    for refusal, number, obstacle in (
        (RTM_NEWTFILTER, errno.EOPNOTSUPP, Obstacle.SHARED),
        (RTM_NEWTFILTER, errno.ENOENT, Obstacle.REFUSED),
        (RTM_NEWQDISC, errno.ENOENT, Obstacle.REFUSED),
    ):
        kernel = FakeKernel(refuse={refusal: number})
        assert fit(kernel, {2: MARKED}).standings[2].obstacle is obstacle


def test_a_filter_that_cannot_be_taken_away_is_an_error() -> None:
    kernel = FakeKernel()
    fit(kernel, {2: MARKED})
    kernel.refuse = {RTM_DELQDISC: errno.EPERM}
    with pytest.raises(PermissionError):
        asyncio.run(Traffic(kernel).remove())


LISTING = """table netdev other {
	chain on_eth9 {
		meta mark set meta mark | 0x02000000 accept
	}
}
table netdev psiphon_egress {
	chain frames {
		meta mark set meta mark | 0x02000000 accept
	}
	chain on_eth0 {
		type filter hook egress device "eth0" priority filter; policy drop;
	}
}
table netdev psiphon_frames { # progname nft
	flags owner

	chain on_wlan0.5 {
		meta mark set meta mark | 0x02000000 accept
	}
}
"""


@pytest.mark.parametrize(
    ("before", "after", "marked"),
    [
        ("", "", {"eth0", "wlan0.5"}),
        ("flags owner", "flags owner,dormant", {"eth0"}),
        (
            "\tchain frames {\n\t\tmeta mark set meta mark | 0x02000000 accept",
            "\tchain frames {\n\t\taccept",
            {"wlan0.5"},
        ),
    ],
    ids=["both", "one is dormant", "one marks nothing"],
)
def test_a_card_is_marked_where_a_guard_of_ours_stands_that_sets_the_mark(
    before: str, after: str, marked: set[str]
) -> None:
    assert list_marking(LISTING.replace(before, after, 1)) == marked


# -- which card has which ----------------------------------------------------------------------------------------------


@pytest.mark.requirement("R2", "B4")
def test_a_card_that_was_renamed_keeps_its_filter_until_it_has_another_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    called = {2: "eth0"}
    monkeypatch.setattr(card_filters, "if_indextoname", called.__getitem__)
    monkeypatch.setattr(card_filters, "if_nametoindex", lambda name: find_index(called, name))
    kernel = FakeKernel()
    filters = CardFilters(kernel)

    def follow(wires: tuple[str, ...], guarded: tuple[str, ...]) -> list[Filter | None]:
        policy = Policy(state=State.LOCKED, identity=Identity(uid=1, gid=1), links=Links(wires=parse_names(*wires)))
        asyncio.run(filters.shed(policy))
        asyncio.run(filters.fit(policy, guarded))
        return [judge([item]).filter for item in kernel.filters]

    assert follow(("eth0",), ("eth0",)) == [MARKED]
    called[2] = "eth7"
    assert follow(("eth0",), ()) == [MARKED], "under a policy that does not know the new name yet"
    assert follow((), ()) == [MARKED]
    assert follow(("eth7",), ("eth7",)) == [MARKED]
    assert (filters.cards, filters.standings) == ({2: "eth7"}, {2: Standing(filter=MARKED)})
    assert follow(("eth7",), ()) == [SOURCES], "the control: without a guard, under the old name"


@pytest.mark.requirement("R2", "B4")
def test_no_filter_goes_while_the_guards_do_not_load_or_the_policy_names_a_card_that_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Once, a card was renamed and back while the rules were flushed in a loop: the filter was gone for seconds."""
    called = {2: "eth0", 3: "docker0"}
    monkeypatch.setattr(card_filters, "if_indextoname", called.__getitem__)
    monkeypatch.setattr(card_filters, "if_nametoindex", lambda name: find_index(called, name))
    kernel = FakeKernel()
    filters = CardFilters(kernel)

    def follow(*wires: str, loaded: bool = True, guarded: tuple[str, ...] = ()) -> dict[int, Filter | None]:
        policy = Policy(state=State.LOCKED, identity=Identity(uid=1, gid=1), links=Links(wires=parse_names(*wires)))
        asyncio.run(filters.shed(policy))
        asyncio.run(filters.fit(policy, guarded or wires, loaded=loaded))
        return {item.index: judge([item]).filter for item in kernel.filters}

    assert follow("eth0", "docker0") == {2: MARKED, 3: MARKED}
    assert follow("wan77") == {2: MARKED, 3: MARKED}, "made while the card was called eth0"
    assert follow("wan77", loaded=False) == {2: MARKED, 3: MARKED}
    called[4] = "usb0"
    assert follow("eth0", "usb0", loaded=False) == {2: MARKED, 4: MARKED}, (
        "a new card gets its filter although no guard loads"
    )
    assert follow("eth0", "usb0", guarded=("eth0",)) == {2: MARKED, 4: SOURCES}
    assert follow("usb0") == {4: MARKED}, "the control: a card that is no longer a wire"


@pytest.mark.requirement("R2", "B4")
@pytest.mark.parametrize("error", [RulesetError("no table"), RoutingError("no route")], ids=["tables", "routes"])
def test_each_wire_gets_its_filter_though_the_load_fails(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the filter stops what traffic control moves, so it must not wait for a successful load."""
    called = {2: "eth0", 3: "usb0"}
    monkeypatch.setattr(card_filters, "if_indextoname", called.__getitem__)
    monkeypatch.setattr(card_filters, "if_nametoindex", lambda name: find_index(called, name))
    kernel = FakeKernel()
    wires = parse_names("eth0", "usb0")
    policy = Policy(state=State.LOCKED, identity=Identity(uid=1, gid=1), links=Links(wires=wires))

    async def put(*_tables: object) -> None:
        raise error

    held: Any = SimpleNamespace(
        lease=SimpleNamespace(close=lambda: None),
        turn=asyncio.Lock(),
        filters=CardFilters(kernel),
        socket=None,
        identity=policy.identity,
        refused=RefusedWires(),
        features=SimpleNamespace(egress_hook=True, lacking=()),
        tables=SimpleNamespace(put=put, guarded=frozenset()),
    )

    async def load() -> None:
        with pytest.raises(EnforcementError):
            await PolicyLoader(held).load(lambda _tun: policy, odd_wires=(), replace_tun=False)

    async def make_tun(*_arguments: object, **_more: object) -> None:
        return None

    monkeypatch.setattr(loading, "ensure_tun", make_tun)
    asyncio.run(load())
    assert {item.index: judge([item]).filter for item in kernel.filters} == {2: MARKED, 3: MARKED}


@pytest.mark.requirement("R2", "B4")
def test_what_a_daemon_before_left_stays_until_a_policy_names_cards_that_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    called = {2: "eth0"}
    monkeypatch.setattr(card_filters, "if_indextoname", called.__getitem__)
    monkeypatch.setattr(card_filters, "if_nametoindex", lambda name: find_index(called, name))
    kernel = FakeKernel()
    fit(kernel, {2: MARKED, 9: MARKED})
    filters = CardFilters(kernel)
    for wire, left in (("wan77", {2, 9}), ("eth0", {2})):
        policy = Policy(state=State.LOCKED, identity=Identity(uid=1, gid=1), links=Links(wires=parse_names(wire)))
        asyncio.run(filters.shed(policy))
        asyncio.run(filters.fit(policy, [wire]))
        assert {item.index for item in kernel.filters} == left


def find_index(called: dict[int, str], name: str) -> int:
    found = [index for index, own in called.items() if own == name]
    if not found:
        raise OSError(errno.ENODEV, "No such device")
    return found[0]


# -- the kernel's words -----------------------------------------------------------------------------------------------


@given(st.binary(max_size=120), st.sampled_from([RTM_NEWQDISC, RTM_NEWTFILTER, RTM_DELTFILTER, 99]))
def test_whatever_the_bytes_decoding_never_fails(body: bytes, kind: int) -> None:
    decode_place(kind, body)
    decode_filter(kind, body)
    parse_changes(HEADER.pack(HEADER.size + len(body), kind, 0, 0, 0) + body)


@pytest.mark.parametrize("kind", Filter)
def test_a_filter_is_read_as_it_is_written(kind: Filter) -> None:
    body = encode_filter(7, HANDLE, 3, PROGRAMS[kind])
    found = decode_filter(RTM_NEWTFILTER, body)
    assert found is not None
    assert (found.index, found.parent, found.preference, found.handle) == (7, EGRESS, 3, HANDLE)
    assert judge([found]) == Standing(filter=kind)
    length = read_attributes(read_attributes(body[TCMSG.size :])[2])[4]
    assert struct.unpack("=H", length) == (len(build_program(kind)),)
    assert encode_program(build_program(kind)) == found.program


@pytest.mark.parametrize("kind", [RTM_NEWQDISC, RTM_DELQDISC, RTM_NEWTFILTER, RTM_DELTFILTER])
def test_a_change_of_traffic_control_is_heard_with_its_interface_and_who_made_it(kind: int) -> None:
    body = TCMSG.pack(0, 9, 0, EGRESS, 0)
    (change,) = parse_changes(HEADER.pack(HEADER.size + len(body), kind, 0, 0, 4711) + body)
    assert (change.kind, change.index, change.port) == ("traffic", 9, 4711)


DISTURBED = (errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.EMFILE, errno.EEXIST)
REFUSED = (errno.EOPNOTSUPP, errno.ENOENT, errno.EINVAL, errno.EPERM)


@pytest.mark.parametrize("kind", [RTM_NEWQDISC, RTM_NEWTFILTER, RTM_DELTFILTER])
@pytest.mark.parametrize("number", [*DISTURBED, *REFUSED])
def test_only_what_the_kernel_refuses_is_missing_and_not_what_was_disturbed(kind: int, number: int) -> None:
    kernel = FakeKernel(refuse={kind: number})
    if number in REFUSED:
        assert asyncio.run(can_filter(kernel)) is False
    else:
        with pytest.raises(OSError, match=os.strerror(number)):
            asyncio.run(can_filter(kernel))
    # What a disturbed attempt left does not hinder the next one.
    kernel.refuse.clear()
    assert asyncio.run(can_filter(kernel)) is True
    assert not kernel.filters


@pytest.mark.parametrize("number", [*DISTURBED, *REFUSED])
def test_a_kernel_that_cannot_even_be_asked_is_distinguished_from_one_without_traffic_control(number: int) -> None:
    class Mute(FakeKernel):
        async def list_places(self) -> tuple[Place, ...]:
            raise OSError(number, os.strerror(number))

    if number in REFUSED:
        assert asyncio.run(can_filter(Mute())) is False
    else:
        with pytest.raises(OSError, match=os.strerror(number)):
            asyncio.run(can_filter(Mute()))
