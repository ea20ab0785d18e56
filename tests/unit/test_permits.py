# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""One row for each thing that may pass: the tables say what the rows say, and nothing else."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import fields, replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from tests.policies import BRIDGES, IDENTITY, LINKS, make_policy, make_situations, policies

import psiphon_vpn
from psiphon_vpn.policy import match, permits
from psiphon_vpn.policy.base import build_base_table, build_drop_only
from psiphon_vpn.policy.guards import build_bridge_guard, build_egress_guard, build_frame_guard, build_wire_guard
from psiphon_vpn.policy.match import TCP, Difference, Flow, Match, Owner, Permit, RuntimeValue
from psiphon_vpn.policy.model import Endpoint, Links, Policy, State
from psiphon_vpn.policy.own_tables import BASE, EGRESS, FRAMES, GUARD, LAYERS, OwnTable
from psiphon_vpn.policy.own_tables import BRIDGES as BRIDGE_GUARD
from psiphon_vpn.policy.render_rules import RenderContext, render_match
from psiphon_vpn.policy.ruleset import Rule, Table
from psiphon_vpn.policy.values import parse_address, parse_addresses, parse_names

POLICY = Path(psiphon_vpn.__file__).parent / "policy"
WRITERS = {
    *("base", "encapsulation", "forward_and_nat", "guards", "plumbing"),
    *("render_guests", "render_rules", "ruleset", "shortcuts", "wire"),
}
"""The modules that write rules."""


def build_layers(policy: Policy) -> dict[OwnTable, Table]:
    """Every layer that has rows, as it would be loaded."""
    links = policy.links
    tables = {
        BASE: build_base_table(policy),
        GUARD: build_wire_guard(policy.identity, links.dhcp_servers, bridges=parse_names("virbr0")),
        FRAMES: build_frame_guard(policy.identity, parse_names("eth0", "ppp0"), headerless=parse_names("ppp0")),
        BRIDGE_GUARD: build_bridge_guard(policy.identity),
    }
    egress = build_egress_guard(
        policy.identity, links.wires, links.dhcp_servers, headerless=links.headerless, on_link=links.on_link
    )
    return tables if egress is None else {**tables, EGRESS: egress}


def every_policy() -> Iterator[Policy]:
    """Each state, and each kind of machine."""
    for state in State:
        yield make_policy(state, links=replace(LINKS, bridges=BRIDGES))
        yield make_policy(state, links=Links())
    yield from make_situations().values()
    yield make_policy(
        State.OPEN, links=replace(LINKS, wires=parse_names("eth0", "ppp0"), headerless=parse_names("ppp0"))
    )


def list_accepts(table: Table) -> Iterator[Rule]:
    return (rule for chain in table.chains for rule in chain.rules if rule.text.endswith(" accept"))


def test_names_of_rows_are_different_and_all_rows_are_in_the_table() -> None:
    assert len({row.name for row in permits.PERMITS}) == len(permits.PERMITS)
    rows = [value for value in vars(permits).values() if isinstance(value, Permit)]
    assert rows == sorted(permits.PERMITS, key=rows.index)


@pytest.mark.requirement("R2", "R24")
@settings(deadline=None)
@given(policies)
def test_no_rule_accepts_anything_but_by_a_row_and_only_in_its_layers(policy: Policy) -> None:
    rows = {row.name: row for row in permits.PERMITS}
    for layer, table in build_layers(policy).items():
        for rule in list_accepts(table):
            assert layer in rows[rule.permit].layers, rule.text


@pytest.mark.requirement("R2")
@settings(deadline=None)
@given(policies)
def test_the_base_table_accepts_what_a_row_lets_pass_in_its_states_alone(policy: Policy) -> None:
    rows = {row.name: row for row in permits.PERMITS}
    for chain in build_base_table(policy).chains:
        # The second check requires the TUN's own address, and leaves the state to the first.
        for rule in chain.rules if chain.name not in {"postrouting", "into_tunnel"} else ():
            if rule.permit:
                assert policy.state in rows[rule.permit].states, rule.text


def test_every_row_has_a_rule_in_each_of_its_layers_and_states() -> None:
    found: dict[OwnTable, set[str]] = {layer: set() for layer in LAYERS}
    by_state: dict[State, set[str]] = {state: set() for state in State}
    for policy in every_policy():
        for layer, table in build_layers(policy).items():
            found[layer] |= {rule.permit for rule in list_accepts(table)}
        by_state[policy.state] |= {rule.permit for rule in list_accepts(build_base_table(policy))}
    for policy in (
        make_policy(state, bootstrap_dns=parse_addresses(["9.9.9.9"])) for state in permits.CORE_NAMES.states
    ):
        by_state[policy.state] |= {rule.permit for rule in list_accepts(build_base_table(policy))}
    for row in permits.PERMITS:
        for layer in row.layers:
            assert row.name in found[layer], (row.name, layer)
        for state in row.states if BASE in row.layers else ():
            assert row.name in by_state[state], (row.name, state)


def test_an_accept_without_a_row_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="row of the table"):
        Rule(text="meta skuid 0 accept")
    with pytest.raises(ValueError, match="row of the table"):
        Rule(text="counter drop", permit="core")
    dropped = build_drop_only(build_base_table(make_policy(State.OPEN)))
    assert {rule.permit for rule in list_accepts(dropped)} == {permits.LOOPBACK.name, permits.LOOPBACK_IN.name}


def test_what_is_written_of_an_unknown_value_is_never_everything() -> None:
    """A row that needs an unknown value has no rule, rather than one without the condition."""
    nothing = RenderContext(identity=IDENTITY)
    for row in permits.PERMITS:
        asked = (*row.match.destinations, *row.match.sources, *row.match.destination_ports)
        if asked and all(isinstance(value, RuntimeValue) for value in asked):
            with pytest.raises(ValueError, match="would match anything"):
                render_match(row.match, nothing)


@pytest.mark.parametrize("field", ["sources", "destinations", "destination_ports", "versions", "protocols"])
@pytest.mark.parametrize("value", ["accept", "10.0.0.0/8 accept", 70000, -1, None, parse_names("eth0")[0]])
def test_no_text_is_a_value_of_a_row(field: str, value: object) -> None:
    changes = {field: (value,)}
    with pytest.raises(ValueError, match="may not stand in a rule"):
        Match(**changes)  # type: ignore[arg-type]


def test_a_row_that_others_let_pass_has_room_for_it() -> None:
    """Otherwise a packet would pass the base table and be stopped by a guard, or a guard would allow more."""
    for row in permits.PERMITS:
        outside = {layer for layer in (row.within.layers if row.within else ()) if layer not in row.layers}
        if outside and row.within is not None:
            wide = replace(row.within.match, versions=match.EVERY_VERSION, lease=None)
            if outside == {BRIDGE_GUARD}:
                wide = replace(wide, destinations=(), protocols=())  # it matches only the port
            assert has_room(wide, replace(row.match, lease=None)), row.name


def has_room(wide: Match, narrow: Match) -> bool:
    """Whether `wide` matches everything that `narrow` matches, as far as a comparison field by field shows."""
    for name in wide.list_set_fields():
        asked, also = getattr(wide, name), getattr(narrow, name)
        if asked != also and not (isinstance(asked, tuple) and also and set(also) <= set(asked)):
            return False
    return True


def test_narrowing_names_layers_that_the_row_has() -> None:
    for row in permits.PERMITS:
        assert {layer for layer, _ in (*row.narrowed, *row.widened)} <= set(row.layers)
        assert all(facts for _, facts in (*row.narrowed, *row.widened))


def test_a_guard_whose_text_outlives_the_moment_narrows_by_nothing_of_it() -> None:
    assert set(permits.CORE.wider_in) == {GUARD, EGRESS, FRAMES, BRIDGE_GUARD}
    assert set(permits.NEIGHBOURS.wider_in) == {BASE, GUARD, FRAMES, BRIDGE_GUARD}
    assert permits.DHCPV6.wider_in == ()
    of_a_moment = {
        Difference.STATE,
        Difference.UPLINK,
        Difference.NEXT_HOP,
        Difference.PROXY,
        Difference.LINK,
        Difference.TARGET,
        Difference.GROUPS,
        Difference.LEASE,
    }
    for row in permits.PERMITS:
        for layer in permits.STATIC_LAYERS:
            assert not of_a_moment & set(row.list_differences(layer))
        if row.states != permits.EVERY_STATE:
            assert Difference.STATE in row.list_differences(BASE)


@pytest.mark.requirement("R5")
def test_what_leaves_by_a_wire_meets_every_layer() -> None:
    for row in permits.ON_A_WIRE:
        lets = {*row.layers, *(row.within.layers if row.within else ())}
        wanted = permits.IP_LAYERS if row.match.versions else permits.FRAME_LAYERS
        assert lets == set(wanted), row.name


def list_importers(name: str) -> set[str]:
    """The modules of the service that import a name from `ruleset`."""
    found = set()
    for path in Path(psiphon_vpn.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            imported = node if isinstance(node, ast.ImportFrom) else None
            if imported is None or imported.module != "psiphon_vpn.policy.ruleset":
                continue
            if name in {alias.name for alias in imported.names}:
                found.add(path.relative_to(POLICY.parent).with_suffix("").as_posix())
    return found


def test_only_the_renderers_write_rules() -> None:
    readers = {"linux/proof", "policy/missing_parts"}
    """One compares rules with those of the kernel, the other takes words away."""
    assert list_importers("Rule") == {f"policy/{name}" for name in WRITERS - {"ruleset"}} | readers
    for field in fields(Match):
        assert "str" not in str(field.type).replace("Strenum", ""), "no field of a row is text"
    for path in (POLICY / "match.py", POLICY / "permits.py"):
        text = path.read_text(encoding="utf-8")
        for word in ("skuid", "daddr", "saddr", "dport", "l4proto", "oifname", "@ll", "@th", "icmpv6 type"):
            assert word not in text, f"{path.name} has a word of nft's: {word}"


# ------------------------------------------------------------------------------------------- one row, every layer


def narrow(monkeypatch: pytest.MonkeyPatch, row: Permit, **changes: object) -> None:
    """Change one row, as an edit of its module would."""
    changed = replace(row, match=replace(row.match, **changes))  # type: ignore[arg-type]
    (name,) = (name for name, value in vars(permits).items() if value is row)
    monkeypatch.setattr(permits, name, changed)


def test_to_allow_the_core_two_ports_alone_is_to_change_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rule about psiphon-user's TCP and UDP on a wire names the two ports, in each layer and form of frame."""
    before = {layer: table.render() for layer, table in build_layers(make_policy(State.OPEN)).items()}
    narrow(monkeypatch, permits.CORE, destination_ports=(443, 80))
    for layer, table in build_layers(make_policy(State.OPEN)).items():
        rules = [rule for rule in list_accepts(table) if rule.permit == permits.CORE.name]
        assert rules
        for rule in rules:
            assert re.search(r" (th dport|@ll,\d+,16) \{ 443, 80 \} ", rule.text), rule.text
        # Nothing else changed.
        narrowed = table.render().replace(" th dport { 443, 80 }", "")
        for port in (" @ll,352,16", " @ll,512,16", " @ll,384,16", " @ll,544,16"):
            narrowed = narrowed.replace(f"{port} {{ 443, 80 }}", "")
        assert narrowed == before[layer]


def test_a_proxy_on_another_port_than_the_core_may_use_is_not_let_through(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow(monkeypatch, permits.CORE, destination_ports=(443, 80))
    for port, lets in ((3128, False), (443, True)):
        policy = make_policy(State.OPEN, upstream_proxy=Endpoint(address=parse_address("192.0.2.9"), port=port))
        rules = [rule for rule in list_accepts(build_base_table(policy)) if rule.permit == permits.CORE.name]
        assert bool(rules) == lets


@pytest.mark.parametrize("row", [permits.DHCP, permits.DHCPV6])
def test_to_let_dhcp_go_nowhere_but_to_one_port_is_to_change_one_row(
    monkeypatch: pytest.MonkeyPatch, row: Permit
) -> None:
    before = sum(count_rules(row.name, table) for table in build_layers(make_policy(State.OPEN)).values())
    narrow(monkeypatch, row, destination_ports=(4242,))
    tables = build_layers(make_policy(State.OPEN))
    assert sum(count_rules(row.name, table) for table in tables.values()) == before
    for table in tables.values():
        for rule in list_accepts(table):
            if rule.permit == row.name:
                assert "dport 4242 " in rule.text or "1092 " in rule.text, rule.text


@pytest.mark.parametrize("row", [permits.APPLICATIONS, permits.CONTAINERS])
def test_to_allow_applications_one_port_alone_is_to_change_one_row(
    monkeypatch: pytest.MonkeyPatch, row: Permit
) -> None:
    """In the base table. The wire guard knows only the TUN, and its row says so."""
    narrow(monkeypatch, row, destination_ports=(443,))
    chains = build_base_table(make_policy(State.OPEN)).chains
    rules = [rule for chain in chains if chain.name != "into_tunnel" for rule in chain.rules if rule.permit == row.name]
    assert rules
    assert all(" th dport 443 " in rule.text for rule in rules)
    assert GUARD in row.wider_in


def count_rules(name: str, table: Table) -> int:
    return sum(rule.permit == name for rule in list_accepts(table))


NARROWER: dict[str, tuple[Any, ...]] = {
    "owner": (Owner.ROOT,),
    "protocols": ((TCP,),),
    "versions": ((4,), (6,)),
    "sources": ((IPv4Address("198.51.100.7"),), (IPv6Address("2001:db8:7::7"),)),
    "destinations": ((IPv4Address("198.51.100.7"),), (IPv6Address("2001:db8:7::7"),)),
    "source_ports": ((4242,),),
    "destination_ports": ((4242,),),
    "hop_limit": (7,),
    "flow": (Flow.REPLIES,),
    "lease": (4,),
}
"""For each field of a row: values that ask for less than any row on a wire does."""


@pytest.mark.requirement("R5", "R24")
@pytest.mark.parametrize("row", permits.ON_A_WIRE, ids=lambda row: row.name)
@pytest.mark.parametrize("field", NARROWER)
def test_nothing_that_a_row_asks_for_is_left_out_of_a_rule(
    monkeypatch: pytest.MonkeyPatch, row: Permit, field: str
) -> None:
    """A narrower row has other rules, or none, in each layer and each form of frame; or rendering fails."""
    policy = make_policy(State.OPEN, bootstrap_dns=parse_addresses(["9.9.9.9"]))

    def list_rules() -> dict[OwnTable, set[str]]:
        found = ((layer, list_accepts(table)) for layer, table in build_layers(policy).items())
        return {layer: {rule.text for rule in rules if rule.permit == row.name} for layer, rules in found}

    before = list_rules()
    for value in NARROWER[field]:
        if value == getattr(row.match, field):
            continue
        try:
            narrow(monkeypatch, row, **{field: value})
            after = list_rules()
        except ValueError:
            continue  # the row, or a form of rule, says that it cannot be matched
        finally:
            monkeypatch.undo()
        for layer, rules in after.items():
            kept = rules & before[layer]
            if field == "versions":
                kept = {text for text in kept if not re.search({4: "0x0800|0021", 6: "0x86dd|0057"}[value[0]], text)}
            if row is permits.CORE_NAMES and field in {"destinations", "versions"}:
                kept = {text for text in kept if "9.9.9.9" not in text}  # a rule is about one resolver
            assert not kept, layer
