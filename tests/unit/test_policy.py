# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What the policy lets pass, for every possible policy, and to the letter for the usual ones."""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import IPv6Network
from pathlib import Path

import pytest
from hypothesis import assume, given
from tests.policies import (
    IDENTITY,
    LINKS,
    accepting_rules,
    golden_rulesets,
    golden_texts,
    make_policy,
    policies,
)

import psiphon_vpn
from psiphon_vpn.policy import names
from psiphon_vpn.policy.base import build_base_table, build_drop_only
from psiphon_vpn.policy.encapsulation import build_carried_chains
from psiphon_vpn.policy.guards import (
    build_arp_table,
    build_bridge_guard,
    build_egress_guard,
    build_frame_guard,
    build_wire_guard,
)
from psiphon_vpn.policy.model import Endpoint, Policy, State
from psiphon_vpn.policy.permits import CORE, PPP_CONTROL
from psiphon_vpn.policy.render_rules import NO_UID
from psiphon_vpn.policy.routing import build_routes
from psiphon_vpn.policy.ruleset import Table
from psiphon_vpn.policy.values import LOOPBACK, parse_address, quote_set

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
GOLDEN_FILES = {
    **{f"{name}.nft": text for name, text in golden_rulesets().items()},
    **{f"{name}.txt": text for name, text in golden_texts().items()},
}
FILTER_HOOKS = {"output", "input", "forward", "postrouting"}
NEW_WORDS = (
    # Words that nft 0.9.3 and Linux 5.4 do not know (R22): the release notes of nftables 0.9.4 to 1.1.
    "destroy",
    "flags owner",
    "persist",
    "hook egress",
    "hook ingress",
    "typeof",
    "synproxy",
    "last used",
    "vmap @",
    "ct count",
    "tproxy",
    "meta ibrname",
    "meta sdif",
    "socket cgroupv2",
)


@pytest.mark.requirement("R4", "R16", "R24")
@pytest.mark.parametrize("name", sorted(GOLDEN_FILES))
def test_the_ruleset_is_the_one_that_was_reviewed(name: str, request: pytest.FixtureRequest) -> None:
    """To change a rule: change the code, run `pytest --update-golden tests/unit/test_policy.py`, read `git diff`."""
    path = GOLDEN / name
    if request.config.getoption("--update-golden"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(GOLDEN_FILES[name])
    assert path.read_text() == GOLDEN_FILES[name], "see this test's docstring"


def test_there_is_no_golden_file_that_nothing_renders() -> None:
    assert {path.name for path in GOLDEN.iterdir()} == set(GOLDEN_FILES)


def test_connecting_and_verifying_have_the_same_rules() -> None:
    """The state machine relies on that: it loads nothing between the two."""
    connecting, verifying = (build_base_table(make_policy(state)) for state in (State.CONNECTING, State.VERIFYING))
    assert connecting.chains == verifying.chains
    assert connecting.sets == verifying.sets


@given(policies)
def test_connecting_and_verifying_have_the_same_rules_for_any_policy(policy: Policy) -> None:
    first, second = (Policy(**{**vars(policy), "state": state}) for state in (State.CONNECTING, State.VERIFYING))
    assert build_base_table(first).chains == build_base_table(second).chains


@pytest.mark.requirement("R1", "R2", "R9", "R11", "B2")
@given(policies)
def test_applications_are_let_into_the_tunnel_by_the_lease_in_open_and_by_nothing_else(policy: Policy) -> None:
    may_open = policy.state is State.OPEN and policy.links.tun_index is not None
    uid = policy.identity.uid
    for chain, rule in accepting_rules(build_base_table(policy)):
        leased = f"@{names.LEASE_SET} accept" in rule.text or f"@{names.LEASE_SET_IPV6} accept" in rule.text
        assert may_open or not leased
        if chain.name == "to_tunnel":
            assert leased or rule.text.startswith(f"meta skuid {uid} ")
        if chain.name == "forward":
            assert leased or "ct state established,related ct direction reply" in rule.text


@pytest.mark.requirement("R19")
@given(policies)
def test_what_is_known_or_related_is_accepted_only_as_an_answer(policy: Policy) -> None:
    """A helper of connection tracking makes what it reads in a flow `related`, and that may be a call from outside."""
    for _, rule in accepting_rules(build_base_table(policy)):
        assert ("ct state" in rule.text) == ("ct direction reply" in rule.text) or "ct status snat" in rule.text


@pytest.mark.requirement("R1", "R2")
@given(policies)
def test_locked_and_failed_let_psiphon_user_out_no_more_than_anybody(policy: Policy) -> None:
    assume(policy.state in {State.LOCKED, State.FAILED})
    uid = policy.identity.uid
    assume(uid not in policy.identity.network_manager_uids)
    for _, rule in accepting_rules(build_base_table(policy)):
        assert f"skuid {uid} " not in rule.text


@pytest.mark.defect(5)
@pytest.mark.requirement("R4", "R5", "R7", "R19")
@given(policies)
def test_only_psiphon_user_and_the_links_own_plumbing_are_accepted_towards_a_wire(policy: Policy) -> None:
    plumbing = ("meta l4proto 58 icmpv6 type ", "meta skuid {")
    for chain, rule in accepting_rules(build_base_table(policy)):
        if rule.shortcut and rule.permit == CORE.name:
            assert f' {policy.identity.owner} oifname "{policy.links.uplink}" ' in rule.text
        elif chain.name == "to_wire":
            core = rule.text.startswith(f'{policy.identity.owner} oifname "{policy.links.uplink}" ')
            assert core or rule.text.startswith(plumbing)
            assert core or re.search(r"icmpv6 type|udp sport (68|546) udp dport (67|547) ", rule.text)
        elif chain.hook and chain.hook.hook == "output":
            raise AssertionError("every other path to a wire goes through the chain to_wire")
        elif chain.name == "loopback":
            assert rule.text.startswith(f"oif {LOOPBACK} ")
        elif chain.hook and chain.hook.hook == "postrouting":
            inner = policy.links.container_interfaces
            elsewhere = "oifname != {" if inner is None else f"oifname {quote_set(inner)} "
            to_container = "ct direction reply ct status snat" in rule.text and rule.text.startswith(elsewhere)
            assert to_container or rule.text.startswith(f"oif {LOOPBACK} ")
        elif chain.name == "into_tunnel":
            assert rule.text.startswith(f'oifname "{names.TUN_NAME}" oif ')


@pytest.mark.requirement("R5")
@given(policies)
def test_nothing_is_accepted_towards_a_wire_because_of_a_mark(policy: Policy) -> None:
    """Tailscale, Kubernetes and others set marks too (A22)."""
    for table in all_tables(policy):
        for chain, rule in accepting_rules(table):
            # When a rule sets a mark, it also reads the other bits and keeps them.
            asked = rule.text.replace(f"meta mark set meta mark or {names.ACCEPTED_BIT:#x} ", "")
            by_mark = re.search(r"\b(meta|ct) mark (?!set )", asked)
            assert not by_mark or chain.name == "input"


@pytest.mark.requirement("R5", "B4")
@given(policies)
def test_the_last_guards_of_a_card_mark_all_that_they_accept_and_no_other_table_sets_that_bit(policy: Policy) -> None:
    links = policy.links
    marking = [build_frame_guard(policy.identity, links.wires, headerless=links.headerless)]
    egress = build_egress_guard(policy.identity, links.wires, links.dhcp_servers, headerless=links.headerless)
    marking += [egress] if egress is not None else []
    setting = f" meta mark set meta mark or {names.ACCEPTED_BIT:#x} accept"
    for table in marking:
        accepting = [rule.text for _, rule in accepting_rules(table)]
        assert accepting
        assert all(text.endswith(setting) for text in accepting)
    others = (build_base_table(policy), build_wire_guard(policy.identity), build_bridge_guard(policy.identity))
    for table in (*others, build_arp_table()):
        assert f"{names.ACCEPTED_BIT:#x}" not in table.render()


def test_that_bit_is_in_no_mark_that_is_ours_or_well_known() -> None:
    known = (names.CORE_MARK, 0xFFFF, 0xFF0000, 0xCA6C, 0x6D6F6C65, 0x80000000, 0x08000000, 0x60000000)
    assert bin(names.ACCEPTED_BIT).count("1") == 1
    assert [mark for mark in known if mark & names.ACCEPTED_BIT] == []


@pytest.mark.defect(7)
@pytest.mark.requirement("R2", "R4", "R7", "R19")
@given(policies)
def test_every_way_in_and_out_is_dropped_by_default_in_every_state(policy: Policy) -> None:
    for table in (build_base_table(policy), build_drop_only(build_base_table(policy))):
        assert table.family == "inet"
        own = {chain.name: chain.hook for chain in table.chains if chain.name in FILTER_HOOKS}
        assert set(own) == FILTER_HOOKS
        for name, hook in own.items():
            assert hook is not None
            assert (hook.kind, hook.hook, hook.policy) == ("filter", name, "drop")


@pytest.mark.defect(5, 9)
@pytest.mark.requirement("R11", "R18")
@given(policies)
def test_psiphon_user_resolves_no_name_outside_unless_the_configuration_says_so(policy: Policy) -> None:
    chain = next(chain for chain in build_base_table(policy).chains if chain.name == "to_wire")
    texts = [rule.text for rule in chain.rules if rule.text.startswith(f"{policy.identity.owner} oifname")]
    if texts:
        dns = [index for index, text in enumerate(texts) if text.endswith("853, 5353, 5355 } drop")]
        assert dns == [len(policy.bootstrap_dns)]
        assert [text for text in texts if text.endswith(" accept")][-1] == texts[-1]


@pytest.mark.requirement("R16")
@given(policies)
def test_every_rule_that_accepts_on_a_wire_says_why(policy: Policy) -> None:
    for table in all_tables(policy):
        for _, rule in accepting_rules(table):
            no_wire = f"@{names.LEASE_SET}" in rule.text or rule.text in {
                f"{way} {LOOPBACK} accept" for way in ("oif", "iif")
            }
            assert rule.comment or no_wire, rule.text


@pytest.mark.requirement("R22")
@given(policies)
def test_nothing_is_written_by_a_name_that_a_file_of_the_system_must_explain(policy: Policy) -> None:
    numbers = r"(\d+|\{ \d+(, \d+)* \})"
    for table in all_tables(policy):
        for chain in table.chains:
            for rule in chain.rules:
                for word in ("skuid", "l4proto", "sport", "dport"):
                    for found in re.finditer(rf"\b{word} (!= )?(\{{[^}}]*\}}|\S+)", rule.text):
                        assert re.fullmatch(numbers, found[2]), rule.text
            if chain.hook:
                assert isinstance(chain.hook.priority, int)


@pytest.mark.requirement("R22")
@given(policies)
def test_the_base_ruleset_has_no_word_that_the_oldest_system_does_not_know(policy: Policy) -> None:
    text = build_base_table(policy).render_replacement()
    for word in NEW_WORDS:
        assert word not in text
    # Comments on tables, chains and sets came with nft 0.9.7; those on rules are older.
    for line in text.splitlines():
        assert not line.strip().startswith("comment ")


@pytest.mark.defect(2)
@pytest.mark.requirement("R3", "B3")
@given(policies)
def test_no_ruleset_touches_another_programs_table(policy: Policy) -> None:
    for table in all_tables(policy):
        text = table.render_replacement()
        statements = [line.strip() for line in text.splitlines() if re.match(r"\s*(delete )?table ", line)]
        assert {line.removeprefix("delete ").removesuffix(" {") for line in statements} == {
            f"table {table.family} {table.name}"
        }
        assert not re.search(
            r"\b(flush|ruleset|reset)\b(?! counters)", re.sub(r"with tcp reset|comment .*|#.*", "", text)
        )


@pytest.mark.defect(2, 3)
@pytest.mark.requirement("R3")
def test_no_part_of_the_service_ever_flushes_the_ruleset() -> None:
    """Defects 2 and 3 of a comparable service: other programs' tables were destroyed, and the lock with them."""
    package = Path(psiphon_vpn.__file__).parent
    for part in ("policy", "linux", "service", "core"):
        for path in (package / part).rglob("*.py"):
            assert "flush ruleset" not in path.read_text(), path


@pytest.mark.defect(4)
@pytest.mark.requirement("R4", "R17")
@given(policies)
def test_no_flow_goes_on_leaving_because_it_was_there_before_the_lock(policy: Policy) -> None:
    """Defect 4 of a comparable service: `ct state established accept` on output (A07)."""
    table = build_base_table(policy)
    for chain, rule in accepting_rules(table):
        if chain.name in {"output", "to_wire", "to_tunnel", "postrouting"}:
            assert "ct state" not in rule.text


@pytest.mark.defect(7)
@pytest.mark.requirement("R10", "R19")
@given(policies)
def test_the_tunnels_addresses_are_dropped_on_every_wire_before_anything_is_accepted_there(policy: Policy) -> None:
    """CVE-2019-14899 (A13)."""
    for chain in build_base_table(policy).chains:
        if chain.name in {"output", "input", "postrouting"}:
            texts = [rule.text for rule in chain.rules]
            refused = [text.removesuffix("drop").removesuffix("goto refused") for text in texts]
            drops = [
                refused.index(f"{word} {side} {subnet} ")
                for word, subnet in (("ip", names.TUN_IPV4_SUBNET), ("ip6", names.TUN_IPV6_SUBNET))
                for side in ("saddr", "daddr")
            ]
            for index, text in enumerate(texts):
                if text == "jump to_wire" or (
                    chain.name == "input" and text.endswith(" accept") and not text.startswith("iif")
                ):
                    assert index > max(drops)


@pytest.mark.requirement("R5", "B3")
def test_the_wire_guard_is_the_same_in_every_state_and_lets_only_psiphon_user_out() -> None:
    guard = build_wire_guard(IDENTITY)
    assert guard.flags == "owner"
    # A card can be given the TUN's name, but every card has a link layer (if_arp.h).
    not_wires = {f"oif {LOOPBACK} accept", 'oifname "PsiphonTUN" meta oiftype 65534 accept'}
    for chain, rule in accepting_rules(guard):
        if chain.name != "forward" and rule.text not in not_wires:
            who = rule.text.startswith((f"meta skuid {IDENTITY.uid} ", "meta skuid { 0, 998 } udp sport "))
            who = who or (rule.shortcut and f" {IDENTITY.owner} " in rule.text)
            assert who or "icmpv6 type" in rule.text or "ct direction reply" in rule.text


@pytest.mark.requirement("B4")
@given(policies)
def test_the_egress_guard_names_every_wire_and_drops_what_it_does_not_know(policy: Policy) -> None:
    guard = build_egress_guard(policy.identity, policy.links.wires, policy.links.dhcp_servers)
    assert (guard is None) == (not policy.links.wires)
    if guard is not None:
        *envelopes, frames = (chain for chain in guard.chains if chain.hook is None)
        hooks = [chain for chain in guard.chains if chain.hook is not None]
        assert all(chain.rules[-1].text == "counter drop" for chain in (*envelopes, frames))
        for wire, chain in zip(policy.links.wires, hooks, strict=True):
            assert chain.hook is not None
            assert (chain.hook.devices, chain.hook.policy) == ((wire,), "drop")
            assert [rule.text for rule in chain.rules] == [f"goto {frames.name}"]
        # The inside of an encapsulation is only reached through rules that match the encapsulation.
        reached = [rule.text.partition(" goto ")[2] for rule in frames.rules if " goto " in rule.text]
        assert reached == [chain.name for chain in envelopes]
        for rule in frames.rules:
            if rule.text.endswith(" accept") or " goto " in rule.text:
                asked = r"meta protocol (0x[0-9a-f]{4}) @ll,96,16 (?:\{ 0x8100, 0x88a8 \} @ll,128,16 )?\1 "
                assert re.match(asked, rule.text), "checked in the frame as well"


@pytest.mark.requirement("R5", "R10", "B4")
@given(policies)
def test_inside_an_envelope_only_psiphon_user_and_the_links_own_plumbing_are_accepted(policy: Policy) -> None:
    control = tuple(f"{word:#06x}" for message in PPP_CONTROL.match.messages for word in message.types)
    for chain in build_carried_chains(policy.identity, policy.links.dhcp_servers, policy.links.on_link):
        texts = [rule.text for rule in chain.rules]
        first = min(texts.index(text) for text in texts if policy.identity.owner in text)
        assert sum("0x0ac80300 drop" in text or "0xfd42004200420000 drop" in text for text in texts[:first]) == 2
        programs_refused = 0
        for text in texts:
            programs_refused += f"meta skuid != {NO_UID} drop" in text
            if text.endswith("accept"):
                owned = policy.identity.owner in text or "meta skuid {" in text
                assert owned or ("meta length" in text and programs_refused), "without an owner, and not plumbing"
        assert all(word in "".join(texts) for word in control) == (chain.name != "two_tags")


def test_an_upstream_proxy_is_the_only_place_where_psiphon_user_may_go() -> None:
    policy = make_policy(State.CONNECTING, upstream_proxy=Endpoint(address=parse_address("192.0.2.9"), port=3128))
    texts = [
        rule.text
        for chain, rule in accepting_rules(build_base_table(policy))
        if rule.text.startswith(f"{IDENTITY.owner} oifname")
    ]
    assert len(texts) == 1
    assert " ip daddr 192.0.2.9 tcp dport 3128 " in texts[0]


@pytest.mark.requirement("R9")
@pytest.mark.parametrize("tun", [False, True])
@pytest.mark.parametrize("open_ipv4", [False, True])
@pytest.mark.parametrize("open_ipv6", [False, True])
def test_the_private_table_leads_into_the_tunnel_only_while_open_and_else_nowhere(
    tun: bool, open_ipv4: bool, open_ipv6: bool
) -> None:
    routes = build_routes(tun=tun, open_ipv4=open_ipv4, open_ipv6=open_ipv6)
    for version, wanted in ((4, open_ipv4), (6, open_ipv6)):
        defaults = [route for route in routes if route.version == version and route.destination.endswith("/0")]
        assert [route for route in defaults if route.unreachable], "nothing falls through to another table"
        assert [route for route in defaults if not route.unreachable] == [
            route for route in defaults if tun and wanted and route.metric == names.ROUTE_METRIC
        ]
        assert max(defaults, key=lambda route: route.metric).unreachable


def all_tables(policy: Policy) -> list[Table]:
    tables = [
        build_base_table(policy),
        build_drop_only(build_base_table(policy)),
        build_wire_guard(policy.identity, policy.links.dhcp_servers),
    ]
    egress = build_egress_guard(policy.identity, policy.links.wires, policy.links.dhcp_servers)
    return tables if egress is None else [*tables, egress]


def test_the_usual_policy_has_every_kind_of_rule() -> None:
    """So that the properties above prove something."""
    table = build_base_table(make_policy(State.OPEN))
    assert LINKS.tun_index is not None
    assert {chain.name for chain, _ in accepting_rules(table)} == {
        "output", "loopback", "to_tunnel", "to_wire", "input", "forward", "postrouting", "into_tunnel",
    }  # fmt: skip


def test_a_guests_prefix_is_known_to_the_base_table_and_to_no_card() -> None:
    guests = IPv6Network("fd00:88::/64")
    on_link = replace(LINKS.on_link, guests_ipv6=(guests,))
    base = build_base_table(make_policy(State.OPEN, links=replace(LINKS, on_link=on_link))).render()
    card = build_egress_guard(IDENTITY, LINKS.wires, LINKS.dhcp_servers, on_link=on_link)
    assert card is not None
    assert str(guests) in base
    assert card == build_egress_guard(IDENTITY, LINKS.wires, LINKS.dhcp_servers, on_link=LINKS.on_link)
