# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What the rules evaluate for usual packets, as exact numbers; and that shortcuts change no verdict."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.policies import BRIDGES, IDENTITY, LINKS, make_policy, make_situations, policies
from tests.rule_walk import IPV4, IPV6, Walked, count_expressions, list_base_chains, read_rule, walk_chain
from tests.usual_packets import (
    CARD,
    LEASES,
    LO,
    PAGE,
    SERVER,
    SYN,
    TUN,
    UDP,
    build_ip,
    build_tables,
    build_tcp,
    build_udp,
    build_walked,
    count_all,
    count_kind,
    list_kinds,
    put_on_card,
    render_counts,
)

from psiphon_vpn.policy import names, permits
from psiphon_vpn.policy.base import build_base_table
from psiphon_vpn.policy.guards import build_bridge_guard, build_egress_guard, build_frame_guard, build_wire_guard
from psiphon_vpn.policy.missing_parts import Part, do_without
from psiphon_vpn.policy.model import Endpoint, Policy, State
from psiphon_vpn.policy.ruleset import Chain, Hook, Rule, Table
from psiphon_vpn.policy.values import ControlGroup, parse_address, parse_names

MOST = {
    "the core to its server, through the card": {"output": 46, "postrouting": 46, "egress": 38},
    "its server's answer, through the card": {"prerouting": 6, "input": 24},
    "an application's packet, into the TUN": {"output": 31, "postrouting": 27},
    "its answer, out of the TUN": {"prerouting": 4, "input": 12},
    "this machine to itself, out": {"output": 19, "postrouting": 6},
    "this machine to itself, in": {"prerouting": 2, "input": 3},
}
"""Expressions that a packet may be asked at each hook, by all tables together; the greater of both families.

Lower a number when the rules have become faster. Every packet on a wire meets all of this, so it costs throughput:
raise a number only for what cannot be asked elsewhere, and measure what it costs.
"""


# ------------------------------------------------------------------------------------------------- the instrument


def make_table(*rules: str, policy: str = "drop", chains: dict[str, tuple[str, ...]] | None = None) -> Table:
    def write(texts: tuple[str, ...]) -> tuple[Rule, ...]:
        return tuple(Rule(text=text, permit="any" if text.endswith("accept") else "") for text in texts)

    hook = Hook(kind="filter", hook="output", priority=0, policy=policy)
    others = tuple(Chain(name=name, rules=write(texts)) for name, texts in (chains or {}).items())
    return Table(family="inet", name="t", chains=(*others, Chain(name="c", hook=hook, rules=write(rules))))


TO_PAGE = build_walked(build_ip("10.200.3.1", PAGE[4], 6, build_tcp(40000, 443)), uid=1000, gid=100, oif=TUN)


def walk(table: Table, packet: Walked = TO_PAGE) -> tuple[str, int, int]:
    done = walk_chain(table, table.chains[-1], packet, LEASES)
    return done.verdict, done.expressions, done.rules


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("meta skuid 1000", True),
        ("meta skuid != 1000", False),
        ("meta skgid { 1, 100 }", True),
        ("meta nfproto ipv6", False),
        ("ip daddr 198.51.100.0/24", True),
        ("ip daddr != { 10.0.0.0/8, 198.51.100.64/26 }", False),
        ("ip6 daddr != ::1", False),
        ("tcp dport 443", True),
        ("udp dport 443", False),
        ("th sport { 1, 40000 }", True),
        ('oif "0000000000000007" oifname "PsiphonTUN" meta oiftype 65534', True),
        ("iif != \"0000000000000001\" iifname != \"PsiphonTUN\"", True),
        ("meta iiftype 1", False),
        ("oifname @tunnel_open", True),
        ("ct state established,related", False),
        ("ct direction original", False),
        ("meta length 0-40", True),
        ("@nh,0,8 & 0x0f == 0x05", True),
        ("@th,16,16 0x01bb", True),
        ("@ll,96,16 0x0800", False),
        ("rt ip nexthop 192.0.2.1", False),
        ("fib daddr type != local", True),
    ],
)  # fmt: skip
def test_it_matches_as_the_kernel_does(text: str, matches: bool) -> None:
    assert (walk(make_table(f"{text} accept"))[0] == "accept") is matches


def test_what_the_packet_does_not_have_matches_neither_equal_nor_unequal() -> None:
    nobody = replace(TO_PAGE, uid=None, gid=None)
    later = replace(TO_PAGE, packet=TO_PAGE.packet[:6] + b"\x01\x00" + TO_PAGE.packet[8:])
    for packet, text in ((nobody, "meta skuid"), (later, "th dport"), (replace(TO_PAGE, protocol=IPV6), "ip saddr")):
        value = "10.0.0.1" if "addr" in text else "1"
        for sign in ("", "!= "):
            assert walk(make_table(f"{text} {sign}{value} accept"), packet)[0] == "drop"


def test_a_rule_ends_where_it_does_not_match_and_that_is_counted() -> None:
    assert walk(make_table("meta skuid 0 ip saddr 10.0.0.1 accept")) == ("drop", 2, 1)
    # The family is matched first, and once.
    assert walk(make_table("ip saddr 10.200.3.1 ip daddr 192.0.2.1 accept")) == ("drop", 6, 1)
    assert walk(make_table("meta skuid 1000 counter accept")) == ("accept", 4, 1)
    assert count_expressions(Rule(text="ip saddr 10.0.0.0/20 drop"), "inet") == 6


def test_chains_are_followed_and_left_as_in_the_kernel() -> None:
    inner = {"a": ("meta skuid 0 accept", "meta skuid 1000 return", "accept"), "b": ("counter",)}
    assert walk(make_table("jump a", "drop", "accept", chains=inner)) == ("drop", 7, 4)
    assert walk(make_table("goto a", "accept", chains=inner))[0] == "drop"
    assert walk(make_table("jump b", "accept", chains=inner))[0] == "accept"
    assert walk(make_table("goto b", "drop", policy="accept", chains=inner))[0] == "accept"


def test_changes_of_the_packet_are_part_of_the_outcome() -> None:
    table = make_table("ct mark set 5 meta mark set meta mark or 0x2000000 accept")
    done = walk_chain(table, table.chains[-1], replace(TO_PAGE, mark=1))
    assert (done.verdict, done.ct_mark, done.mark) == ("accept", 5, 0x2000001)


def test_every_rule_of_ours_can_be_read() -> None:
    for policy in every_policy():
        for table in build_all(policy):
            for chain in table.chains:
                for rule in chain.rules:
                    if chain.hook is None or chain.hook.kind != "nat":
                        assert read_rule(rule.text, table.family)


# ---------------------------------------------------------------------------------------------------- the numbers


def test_a_usual_packet_is_asked_no_more_than_this_at_each_hook() -> None:
    found: dict[str, dict[str, int]] = {}
    for name, counts in count_all().items():
        kind = found.setdefault(name.rpartition(",")[0], {})
        sums: dict[str, int] = {}
        for (hook, _, _), (expressions, _) in counts.items():
            sums[hook] = sums.get(hook, 0) + expressions
        for hook, most in sums.items():
            kind[hook] = max(most, kind.get(hook, 0))
    for name, hooks in MOST.items():
        for hook, most in hooks.items():
            assert found[name][hook] <= most, f"{name} at {hook}\n{render_counts()}"
    assert {name: set(hooks) for name, hooks in found.items()} == {name: set(hooks) for name, hooks in MOST.items()}


def test_a_datagram_is_asked_what_a_segment_is_asked() -> None:
    """So UDP costs more only by the number of its packets: nothing joins datagrams before the rules."""
    tables = build_tables()
    for kind in list_kinds():
        if "this machine" not in kind.name:  # its proxy's port is one of TCP
            datagram = replace(kind, walked=replace(kind.walked, packet=make_datagram(kind.walked.packet)))
            assert count_kind(datagram, tables) == count_kind(kind, tables), kind.name


def make_datagram(packet: bytes) -> bytes:
    """A packet of UDP between the same ends as a given one of TCP."""
    field, length = (9, 20) if packet[0] >> 4 == 4 else (6, 40)
    ports = (int.from_bytes(packet[at : at + 2], "big") for at in (length, length + 2))
    return packet[:field] + bytes((UDP,)) + packet[field + 1 : length] + build_udp(*ports)


def test_the_core_and_applications_are_accepted_by_a_shortcut_wherever_there_are_some() -> None:
    """Otherwise the comparison below would compare nothing."""
    used = set()
    for kind in list_kinds():
        for hook in kind.hooks:
            for table in build_tables():
                for chain in list_base_chains(table, hook):
                    packet = put_on_card(kind.walked) if hook == "egress" else kind.walked
                    short, long = (
                        walk_chain(item, find_chain(item, chain.name), packet, LEASES)
                        for item in (table, table.leave_out_shortcuts())
                    )
                    assert short.outcome == long.outcome
                    if short.rules < long.rules:
                        used.add((kind.name.rpartition(",")[2], table.name, hook))
    for version in (" IPv4", " IPv6"):
        for place in (("output", "psiphon_filter"), ("postrouting", "psiphon_filter"), ("input", "psiphon_filter")):
            assert (version, place[1], place[0]) in used
        for hook in ("output", "postrouting"):
            assert (version, names.GUARD_TABLE, hook) in used
        for name in (names.EGRESS_TABLE, names.FRAME_TABLE):
            assert (version, name, "egress") in used


# ------------------------------------------------------------------------------------------- the order of the rules


def find_chain(table: Table, name: str) -> Chain:
    return next(chain for chain in table.chains if chain.name == name)


GROUP = ControlGroup("system.slice/psiphon-vpn.service")


def every_policy() -> Iterator[Policy]:
    """Each state and each kind of machine, with a TUN of its own index."""
    links = replace(LINKS, tun_index=TUN[0])
    for state in State:
        yield make_policy(state, links=links)
        yield make_policy(state, links=replace(links, bridges=BRIDGES), control_group=GROUP)
    for policy in make_situations().values():
        yield replace(policy, links=replace(policy.links, tun_index=TUN[0]))
    for port in (53, 443):
        yield make_policy(State.OPEN, links=links, upstream_proxy=Endpoint(address=parse_address(SERVER[4]), port=port))


def build_all(policy: Policy) -> tuple[Table, ...]:
    links = policy.links
    egress = build_egress_guard(
        policy.identity, links.wires, links.dhcp_servers, headerless=links.headerless, on_link=links.on_link
    )
    cards = parse_names("eth0", "ppp0")
    return (
        build_base_table(policy),
        build_wire_guard(policy.identity, links.dhcp_servers, bridges=parse_names("virbr0")),
        *(() if egress is None else (egress,)),
        build_frame_guard(policy.identity, cards, headerless=parse_names("ppp0")),
        build_bridge_guard(policy.identity),
    )


_PLACES = {
    4: (SERVER[4], PAGE[4], "192.0.2.10", "192.0.2.1", "192.168.122.7", "127.0.0.1", "255.255.255.255", "10.200.3.1",
        "10.200.3.2", "10.200.3.9", "10.9.9.9", "9.9.9.9", "192.0.2.9"),
    6: (SERVER[6], PAGE[6], "2001:db8:a::10", "fe80::1", "fe80::a10", "ff02::1:ff00:1", "ff02::2", "::1", "::",
        "fd42:42:42::1", "fd42:42:42::9", "fd00::9", "2620:fe::fe", "2001:500:ba3e::2:30"),
}  # fmt: skip
_PORTS = st.sampled_from((40000, 443, 53, 67, 68, 137, 546, 547, 853, 1081, 3128, 5353, 5355)) | st.integers(0, 65535)
_DEVICES = st.sampled_from(
    (CARD, CARD, TUN, LO, (3, "wlan0", 1), (4, names.TUN_NAME, 1), (5, "virbr0", 1), (6, "lo", 1), (2, "ppp0", 512),
     (8, "docker0", 1), (1, "PsiphonTUN", 772))
)  # fmt: skip


@st.composite
def _packets(draw: st.DrawFn, version: int) -> bytes:
    """An IP packet: mostly TCP and UDP, between addresses that a rule may name."""
    source, target = (draw(st.sampled_from(_PLACES[version])) for _ in range(2))
    protocol = draw(st.sampled_from((6, 6, 17, 17, 58, 1, 47)))
    if protocol == 6:
        payload = build_tcp(draw(_PORTS), draw(_PORTS), draw(st.sampled_from((16, SYN))))
    elif protocol == UDP:
        payload = build_udp(draw(_PORTS), draw(_PORTS))
    else:
        payload = bytes((draw(st.sampled_from((133, 135, 136, 130, 131, 134, 8))), 0)) + bytes(
            draw(st.sampled_from((2, 6, 22, 30)))
        )
    packet = build_ip(source, target, protocol, payload, hop_limit=draw(st.sampled_from((64, 255, 1))))
    cut = draw(st.sampled_from((0, 0, 0, 0, 1, 2)))
    if cut == 1 and version == 4:  # a later fragment, which has no ports
        return packet[:6] + b"\x00\x10" + packet[8:]
    if cut == 1:
        return packet[:6] + b"\x2c" + packet[7:40] + bytes((protocol, 0, 0, 0x80)) + bytes(4) + packet[40:]
    # The kernel evaluates no rule for less than an IP header.
    return packet[: draw(st.integers(20 if version == 4 else 40, len(packet)))] if cut == 2 else packet


@st.composite
def walked_packets(draw: st.DrawFn, policy: Policy) -> Walked:
    """Packets of the usual kinds with some properties changed, and random others."""
    identity = policy.identity
    sender = st.sampled_from((identity.uid, 0, 998, 1000, None))
    facts: dict[str, st.SearchStrategy[Any]] = {
        "oif": _DEVICES | st.none(),
        "iif": _DEVICES | st.none(),
        "uid": sender,
        "gid": st.sampled_from((identity.gid, 0, 1000)),
        "groups": st.sampled_from((frozenset[str](), frozenset({str(GROUP)}))),
        "state": st.sampled_from(("established", "new", "related", "invalid")),
        "direction": st.sampled_from(("original", "reply")),
        "ct_mark": st.sampled_from((0, names.CORE_MARK, 1)),
        "mark": st.sampled_from((0, names.ACCEPTED_BIT, names.CORE_MARK)),
        "status": st.sampled_from((frozenset[str](), frozenset({"snat"}))),
        "nexthop": st.sampled_from(("192.0.2.1", "fe80::1", *map(str, policy.links.gateways), SERVER[4], SERVER[6])),
        "oifkind": st.sampled_from(("", "bridge", "veth")),
    }
    kind = draw(st.sampled_from(list_kinds())).walked
    packet = draw(st.just(kind.packet) | _packets(4) | _packets(6))
    changes = {name: draw(facts[name]) for name in draw(st.sets(st.sampled_from(sorted(facts)), max_size=4))}
    if kind.uid == IDENTITY.uid:
        changes = {"uid": identity.uid, "gid": identity.gid, "groups": frozenset({str(GROUP)}), **changes}
    if kind.oif == CARD and policy.links.uplink is not None:
        changes = {"oif": (2, str(policy.links.uplink), 1), **changes}
    if TUN in {kind.oif, kind.iif}:
        tun = (policy.links.tun_index or TUN[0], *TUN[1:])
        changes = {"oif" if kind.oif == TUN else "iif": tun, **changes}
    near = {"4": "192.0.2.1", "6": "fe80::1"}[str(packet[0] >> 4)]
    gateways = [str(found) for found in policy.links.gateways if found.version == packet[0] >> 4]
    changes = {"nexthop": (gateways or [near])[0], **changes}
    # If both exist they agree, except for a raw frame whose sender chose the protocol of its buffer.
    protocol = IPV4 if packet[0] >> 4 == 4 else IPV6
    return replace(kind, packet=packet, protocol=protocol, **changes)


def check_verdicts(table: Table, packet: Walked, leases: tuple[str, ...]) -> None:
    long_way = table.leave_out_shortcuts()
    for chain in list_base_chains(table):
        found = packet
        if table.family in {"netdev", "bridge"}:
            device = str(chain.devices[0]) if chain.devices else "eth0"
            found = replace(put_on_card(packet), oif=(2, device, 1))
            found = replace(found, ethernet=b"") if device == "ppp0" else found
        short = walk_chain(table, chain, found, leases)
        long = walk_chain(long_way, find_chain(long_way, chain.name), found, leases)
        assert short.outcome == long.outcome, (table.name, chain.name, found)


_leases = st.sampled_from((LEASES, ()))


@pytest.mark.requirement("R2", "R4", "R5")
@settings(deadline=None)
@given(st.data(), st.sampled_from(list(every_policy())) | policies, _leases)
def test_no_shortcut_changes_what_becomes_of_a_packet(
    data: st.DataObject, policy: Policy, leases: tuple[str, ...]
) -> None:
    tables = build_all(policy)
    for packet in data.draw(st.lists(walked_packets(policy), min_size=10, max_size=30)):
        for table in tables:
            check_verdicts(table, packet, leases)


@settings(deadline=None)
@given(st.data(), st.sampled_from(list(every_policy())), st.sets(st.sampled_from(Part)))
def test_nor_where_the_kernel_lacks_a_part(data: st.DataObject, policy: Policy, lacking: set[Part]) -> None:
    table = do_without(build_base_table(policy), lacking)
    for packet in data.draw(st.lists(walked_packets(policy), min_size=5, max_size=15)):
        check_verdicts(table, packet, LEASES)


@settings(deadline=None)
@given(st.data())
def test_raw_frames_whose_buffer_and_header_differ_are_judged_the_same(data: st.DataObject) -> None:
    """The sender of a raw frame chooses both (packet(7))."""
    policy = make_policy(State.OPEN)
    packet = data.draw(walked_packets(policy))
    kinds = st.sampled_from((IPV4, IPV6, 0x0806, 0x8100, 0x888E))
    outer = data.draw(kinds).to_bytes(2, "big")
    tag = data.draw(st.sampled_from((b"", b"\x81\x00\x00\x05")))
    frame = replace(packet, ethernet=bytes(12) + tag + outer, unseen=len(tag), protocol=data.draw(kinds), oif=CARD)
    for table in build_all(policy)[2:]:
        for chain in list_base_chains(table):
            long_way = table.leave_out_shortcuts()
            assert (
                walk_chain(table, chain, frame).outcome
                == walk_chain(long_way, find_chain(long_way, chain.name), frame).outcome
            )


@pytest.mark.parametrize("word", ["th dport != { 53, 137, 853, 5353, 5355 } ", "rt ip nexthop 192.0.2.1 "])
def test_a_shortcut_that_leaves_a_question_out_is_found(word: str) -> None:
    """The positive control of the comparison: for each match of a shortcut there is a packet that fails it."""
    policy = make_policy(State.OPEN, links=replace(LINKS, tun_index=TUN[0]))
    table = build_base_table(policy)
    hole = replace(
        table,
        chains=tuple(
            replace(
                chain,
                rules=tuple(
                    replace(rule, text=rule.text.replace(word, "")) if rule.shortcut else rule for rule in chain.rules
                ),
            )
            for chain in table.chains
        ),
    )
    assert hole != table
    core = next(kind.walked for kind in list_kinds() if kind.name.startswith("the core"))
    asks = build_ip(str(ipaddress.ip_address("192.0.2.10")), SERVER[4], UDP, build_udp(40000, 53))
    bad = replace(core, packet=asks) if "dport" in word else replace(core, nexthop=SERVER[4])
    check_verdicts(table, bad, LEASES)
    with pytest.raises(AssertionError):
        check_verdicts(hole, bad, LEASES)


def test_without_shortcuts_each_row_still_has_its_rules() -> None:
    """A shortcut is never the only rule for what it accepts."""
    for policy in every_policy():
        for table in build_all(policy):
            for chain in table.leave_out_shortcuts().chains:
                assert not any(rule.shortcut for rule in chain.rules)
            short = {rule.permit for chain in table.chains for rule in chain.rules if rule.shortcut}
            rows = {rule.permit for chain in table.chains for rule in chain.rules if rule.permit and not rule.shortcut}
            assert short <= rows
    with pytest.raises(ValueError, match="only accepts"):
        Rule(text="counter drop", shortcut=True)
    names_of = {
        rule.permit for table in build_tables() for chain in table.chains for rule in chain.rules if rule.shortcut
    }
    assert names_of == {
        row.name for row in (permits.CORE, permits.CORE_ANSWERS, permits.APPLICATIONS, permits.APPLICATIONS_IPV6)
    }


def test_leaving_out_a_match_that_is_not_known_is_no_answer() -> None:
    """A word that the instrument cannot read is an error, not a match."""
    with pytest.raises((KeyError, ValueError, AssertionError)):
        read_rule("meta hour 5 accept", "inet")
