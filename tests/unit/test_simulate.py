# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The interpreter behind `locked`: right about what it knows, and at worst it calls a locked machine open."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psiphon_vpn.diagnose.checks.lock import forwarded_packets
from psiphon_vpn.policy.simulate import Packet, application_packets, lets_out

ROOT_TCP = Packet(
    values={
        "meta oifname": "eth0",
        "meta skuid": 0,
        "meta l4proto": 6,
        "meta nfproto": 2,
        "ip daddr": "9.9.9.9",
        "tcp dport": 443,
        "th dport": 443,
    },
    absent=frozenset({"ip6", "udp"}),
)


def match(left: dict[str, Any], right: Any, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": left, "right": right}}


def meta(key: str, right: Any, op: str = "==") -> dict[str, Any]:
    return match({"meta": {"key": key}}, right, op)


def payload(protocol: str, name: str, right: Any, op: str = "==") -> dict[str, Any]:
    return match({"payload": {"protocol": protocol, "field": name}}, right, op)


ACCEPT, DROP, RETURN = {"accept": None}, {"drop": None}, {"return": None}
NOT_UNDERSTOOD: list[Any] = [
    {"xt": {"type": "match", "name": "bpf"}},
    "notrack",
    meta("cgroup", 7),
    match({"fib": {"result": "type", "flags": ["daddr"]}}, "local"),
    meta("skuid", "psiphon-user"),
    match({"&": [{"meta": {"key": "mark"}}, 1]}, 1),
    meta("skuid", 0, "<"),
    {"match": "nonsense"},
    payload("tcp", "dport", {"unknown": 1}),
]


def ruleset(*rules: list[Any], policy: str = "drop", **others: list[list[Any]]) -> list[Any]:
    objects: list[Any] = [
        {"metainfo": {"version": "1.0.6"}},
        {"chain": {"name": "output", "type": "filter", "hook": "output", "prio": 0, "policy": policy}},
    ]
    objects += [{"chain": {"name": name}} for name in others]
    for name, chain in {"output": list(rules), **others}.items():
        objects += [{"rule": {"chain": name, "expr": expressions}} for expressions in chain]
    return objects


def passes(*rules: list[Any], policy: str = "drop", **others: list[list[Any]]) -> bool:
    return lets_out(ruleset(*rules, policy=policy, **others), ROOT_TCP)


@pytest.mark.requirement("R4")
def test_the_policy_decides_where_no_rule_does() -> None:
    assert not passes(policy="drop")
    assert passes(policy="accept")


def test_a_table_without_a_chain_on_output_stops_nothing() -> None:
    assert lets_out([], ROOT_TCP)


@pytest.mark.parametrize(
    ("expression", "matches"),
    [
        (meta("oifname", "eth0"), True),
        (meta("oifname", "lo"), False),
        (meta("oifname", "lo", "!="), True),
        (meta("skuid", 64190), False),
        (meta("skuid", {"set": [0, 998]}), True),
        (meta("l4proto", "tcp"), True),
        (meta("l4proto", {"set": ["udp", 58]}), False),
        (payload("ip", "daddr", {"prefix": {"addr": "9.0.0.0", "len": 8}}), True),
        (payload("ip", "daddr", {"set": [{"prefix": {"addr": "10.0.0.0", "len": 8}}, "192.0.2.1"]}), False),
        (payload("ip", "daddr", {"range": ["9.9.9.0", "9.9.9.255"]}), True),
        (payload("tcp", "dport", {"range": [1, 80]}), False),
        (payload("th", "dport", 443), True),
        (payload("ip6", "daddr", "2001:db8::1"), False),
        (payload("ip6", "daddr", "2001:db8::1", "!="), False),
        (payload("udp", "dport", 443), False),
    ],
)
def test_what_it_knows_it_reads_as_the_kernel_does(expression: dict[str, Any], matches: bool) -> None:
    assert passes([expression, ACCEPT]) == matches
    assert passes([expression, DROP], policy="accept") != matches


@pytest.mark.requirement("R1")
@pytest.mark.parametrize("expression", NOT_UNDERSTOOD)
def test_what_it_does_not_understand_counts_as_open(expression: Any) -> None:
    assert passes([expression, ACCEPT])
    assert passes([expression, DROP], policy="accept")
    assert passes([expression, RETURN], [ACCEPT])
    assert passes([expression, RETURN], [DROP], policy="accept")
    assert passes([expression, {"goto": {"target": "inner"}}], [DROP], policy="accept", inner=[])
    assert passes([expression, {"jump": {"target": "inner"}}], inner=[[ACCEPT]])
    assert passes([expression, {"goto": {"target": "inner"}}], policy="accept", inner=[[DROP]])


def test_chains_are_followed_and_left_as_in_the_kernel() -> None:
    assert passes([{"jump": {"target": "inner"}}], inner=[[ACCEPT]])
    assert not passes([{"jump": {"target": "inner"}}], [DROP], inner=[[RETURN], [ACCEPT]], policy="accept")
    assert not passes([{"goto": {"target": "inner"}}], [ACCEPT], inner=[[RETURN]])
    assert passes([{"jump": {"target": "inner"}}], [ACCEPT], inner=[[meta("oifname", "lo"), DROP]])
    assert passes([meta("oifname", "eth0"), {"goto": {"target": "inner"}}], [DROP], policy="accept", inner=[])
    assert not passes([meta("oifname", "lo"), ACCEPT], [{"reject": {"type": "tcp reset"}}], policy="accept")


def test_the_first_verdict_counts() -> None:
    assert not passes([DROP], [ACCEPT])
    assert passes([ACCEPT], [DROP])


def test_chains_that_call_each_other_for_ever_count_as_open() -> None:
    assert passes([{"jump": {"target": "inner"}}], inner=[[{"jump": {"target": "inner"}}]])


@pytest.mark.requirement("R1")
def test_elements_of_a_named_set_count_and_a_set_that_was_not_listed_may_hold_anything() -> None:
    rules = ruleset([meta("oifname", "@tunnel_open"), ACCEPT])
    assert lets_out(rules, ROOT_TCP)
    for elements, passed in ((["PsiphonTUN"], False), (["PsiphonTUN", {"elem": {"val": "eth0", "timeout": 5}}], True)):
        assert lets_out([*rules, {"set": {"name": "tunnel_open", "elem": elements}}], ROOT_TCP) == passed
    assert not lets_out([*rules, {"set": {"name": "tunnel_open"}}], ROOT_TCP)


@pytest.mark.requirement("R1")
@pytest.mark.parametrize(
    "rule",
    [
        [{"vmap": {"key": {"meta": {"key": "l4proto"}}, "data": {"set": [["tcp", ACCEPT]]}}}],
        [{"queue": {"num": 0}}],
        [{"xt": {"type": "target", "name": "ACCEPT"}}],
    ],
)
def test_a_statement_that_it_does_not_know_may_accept(rule: list[Any]) -> None:
    assert passes(rule)


def test_a_limit_stops_only_some_packets() -> None:
    assert passes([{"limit": {"rate": 1, "per": "day"}}, DROP], policy="accept")


@pytest.mark.requirement("R1")
@pytest.mark.parametrize(
    ("expression", "may_match"),
    [
        (meta("oifname", "eth0"), True),
        (meta("oifname", "eth*"), True),
        (meta("oifname", {"set": ["lo", "eth0"]}), True),
        (meta("oif", 7), True),
        (meta("oifname", "@wires"), True),
        (meta("oifname", "lo", "!="), True),
        (meta("oifname", "eth0", "!="), True),
        (meta("oifname", "lo"), True),  # a card can have that name
        (meta("oifname", {"set": ["lo", "PsiphonTUN"]}), True),
        (meta("oifname", "PsiphonTUN"), True),  # that one too
        (meta("oif", {"set": ["lo", "PsiphonTUN"]}), False),
        (meta("oif", "lo"), False),
    ],
)
def test_the_samples_leave_by_any_wire_that_a_rule_may_name(expression: dict[str, Any], may_match: bool) -> None:
    assert any(lets_out(ruleset([expression, ACCEPT]), packet) for packet in application_packets()) == may_match


def passes_any(packets: tuple[Packet, ...], *expressions: dict[str, Any], hook: str = "output") -> bool:
    objects = ruleset([*expressions, ACCEPT])
    objects[1]["chain"]["hook"] = hook
    return any(lets_out(objects, packet, hooks=(hook,)) for packet in packets)


@pytest.mark.requirement("R1")
def test_the_tun_is_distinguished_from_a_card_that_is_called_like_it() -> None:
    packets = application_packets()
    assert not passes_any(packets, meta("oifname", "PsiphonTUN"), meta("oiftype", 65534))
    assert not passes_any(packets, meta("oifname", "PsiphonTUN"), meta("oif", "PsiphonTUN"))
    assert passes_any(packets, meta("oifname", "PsiphonTUN"), meta("oiftype", 1))
    assert passes_any(packets, meta("oiftype", 65534))  # a device of another VPN


@pytest.mark.requirement("R1")
def test_loopback_is_recognised_by_its_index_whatever_it_and_a_card_are_called() -> None:
    for packets, side, hook in (
        (application_packets("lo0"), "o", "output"),
        (forwarded_packets("lo0"), "o", "forward"),
        (forwarded_packets("lo0"), "i", "forward"),
    ):
        assert not passes_any(packets, meta(f"{side}if", "lo0"), hook=hook)
        assert passes_any(packets, meta(f"{side}if", "lo"), hook=hook)
        assert passes_any(packets, meta(f"{side}ifname", "lo"), hook=hook)
        assert passes_any(packets, meta(f"{side}ifname", "lo0"), hook=hook)  # tomorrow's card


_expressions = st.lists(
    st.sampled_from([meta("oifname", "eth0"), meta("oifname", "lo"), meta("skuid", 0), *NOT_UNDERSTOOD]), max_size=2
)
_verdicts = st.sampled_from([ACCEPT, DROP, RETURN, {"jump": {"target": "inner"}}, {"goto": {"target": "inner"}}])
_rules = st.lists(st.tuples(_expressions, _verdicts).map(lambda pair: [*pair[0], pair[1]]), max_size=4)


@pytest.mark.requirement("R1")
@given(_rules, _rules, st.integers(0, 4), st.sampled_from(["drop", "accept"]))
def test_a_further_accepting_rule_never_makes_it_look_more_locked(
    rules: list[list[Any]], inner: list[list[Any]], place: int, policy: str
) -> None:
    more = [*rules[:place], [ACCEPT], *rules[place:]]
    if passes(*rules, policy=policy, inner=inner):
        assert passes(*more, policy=policy, inner=inner)


@pytest.mark.requirement("R1")
@given(_rules, _rules, st.sampled_from(["drop", "accept"]), st.data())
@settings(max_examples=400)
def test_understanding_less_never_makes_it_look_more_locked(
    rules: list[list[Any]], inner: list[list[Any]], policy: str, data: st.DataObject
) -> None:
    blurred = [
        [
            {"match": "nonsense"} if isinstance(item, dict) and "match" in item and data.draw(st.booleans()) else item
            for item in rule
        ]
        for rule in rules
    ]
    if passes(*rules, policy=policy, inner=inner):
        assert passes(*blurred, policy=policy, inner=inner)


def test_the_samples_are_of_both_families_all_users_and_all_protocols() -> None:
    packets = application_packets()
    assert {packet.values["meta nfproto"] for packet in packets} == {2, 10}
    assert {packet.values["meta skuid"] for packet in packets} == {0, 1000, 65534}
    assert {packet.values["meta l4proto"] for packet in packets} == {1, 6, 17, 58}
    assert {packet.values.get("th dport") for packet in packets} == {443, 53, None}
