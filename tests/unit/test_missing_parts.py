# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The rules for a kernel that lacks a part of nf_tables: without the missing expressions, and no wider."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.policies import accepting_rules, policies

from psiphon_vpn.policy.base import build_base_table
from psiphon_vpn.policy.missing_parts import Part, do_without
from psiphon_vpn.policy.model import Policy

lacking_parts = st.frozensets(st.sampled_from(Part))
WORDS = {
    Part.REJECT: "reject with ",
    Part.NAT: "type nat ",
    Part.FIB: "fib daddr",
    Part.RT: " rt ip",
}


@pytest.mark.requirement("R1", "R22")
@given(policies, lacking_parts)
def test_no_word_of_a_missing_part_is_left_and_nothing_is_accepted_that_was_not(
    policy: Policy, lacking: frozenset[Part]
) -> None:
    whole = build_base_table(policy)
    reduced = do_without(whole, lacking)
    text = reduced.render_replacement()
    for part in lacking:
        assert WORDS[part] not in text
    assert {rule.text for _, rule in accepting_rules(reduced)} <= {rule.text for _, rule in accepting_rules(whole)}
    hooks = {chain.name: chain.hook for chain in whole.chains}
    for chain in reduced.chains:
        assert chain.hook == hooks[chain.name]
    for name in ("output", "input", "forward", "postrouting", "to_wire"):
        kept = next(chain for chain in reduced.chains if chain.name == name)
        before = next(chain for chain in whole.chains if chain.name == name)
        lost = len(before.rules) - len(kept.rules)
        assert lost == (sum(" rt " in rule.text for rule in before.rules) if Part.RT in lacking else 0)
    # What was rejected is dropped, in the same place.
    if Part.REJECT in lacking:
        assert text.count(" drop") >= whole.render_replacement().count(" reject with ")


@given(policies)
def test_where_nothing_is_missing_the_table_is_the_policys(policy: Policy) -> None:
    whole = build_base_table(policy)
    assert do_without(whole, frozenset()) == whole


@given(policies, lacking_parts)
def test_every_chain_that_a_rule_leads_to_is_there(policy: Policy, lacking: frozenset[Part]) -> None:
    reduced = do_without(build_base_table(policy), lacking)
    names = {chain.name for chain in reduced.chains}
    for chain in reduced.chains:
        for rule in chain.rules:
            words = rule.text.split()
            if len(words) > 1 and words[-2] in {"goto", "jump"}:
                assert words[-1] in names
