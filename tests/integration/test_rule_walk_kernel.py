# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The instrument that counts expressions (`tests/rule_walk.py`), compared with those that nft makes of our rules."""

from __future__ import annotations

import re

import pytest
from tests.integration.kernel import Kernel
from tests.policies import IDENTITY, LINKS, golden_tables
from tests.rule_walk import count_expressions

from psiphon_vpn.policy.guards import build_egress_guard, build_frame_guard, build_wire_guard
from psiphon_vpn.policy.ruleset import Table
from psiphon_vpn.policy.values import parse_names

pytestmark = pytest.mark.lab


def list_tables() -> dict[str, Table]:
    lo = parse_names("lo")
    egress = build_egress_guard(IDENTITY, lo, LINKS.dhcp_servers, on_link=LINKS.on_link)
    assert egress is not None
    guards = {"wire_guard": build_wire_guard(IDENTITY), "frame_guard": build_frame_guard(IDENTITY, lo)}
    return {**golden_tables(), **guards, "egress_guard": egress}


def read_expressions(debug: str, table: Table) -> dict[str, list[int]]:
    """The number of expressions of each rule, by chain, from what `nft --debug=netlink` says."""
    found: dict[str, list[int]] = {}
    current: list[int] | None = None
    for line in debug.splitlines():
        if rule := re.fullmatch(rf"{table.family} {table.name} (\S+)(?: \d+)*\s*", line):
            current = found.setdefault(rule[1], [])
            current.append(0)
        elif not line.startswith(" "):
            current = None
        elif line.strip().startswith("[") and current is not None:
            current[-1] += 1
    return found


@pytest.mark.parametrize("name", sorted(list_tables()))
def test_nft_makes_as_many_expressions_of_a_rule_as_are_counted(kernel: Kernel, name: str) -> None:
    """Or fewer, where nft compares neighbouring fields at once; usual packets meet none of those."""
    table = list_tables()[name]
    text = table.render(flags="")
    made = read_expressions(kernel.host.run(["nft", "--debug=netlink", "-f", "-"], input=text).stdout, table)
    same = 0
    for chain in table.chains:
        assert len(made.get(chain.name, [])) == len(chain.rules), chain.name
        for rule, expressions in zip(chain.rules, made.get(chain.name, []), strict=True):
            counted = count_expressions(rule, table.family)
            assert expressions <= counted, rule.text
            assert expressions == counted or not rule.shortcut, rule.text
            same += expressions == counted
    assert same > sum(len(chain.rules) for chain in table.chains) / 2
