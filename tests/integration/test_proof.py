# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules are compared with the policy value by value, as the kernel lists them."""

from __future__ import annotations

import os
import re

import pytest
from hypothesis import HealthCheck, given, settings
from tests.integration.kernel import Kernel
from tests.policies import IDENTITY, LINKS, golden_tables, make_policy, policies

from psiphon_vpn.linux.nfnetlink import NftSocket
from psiphon_vpn.linux.nftimage import read_image
from psiphon_vpn.linux.proof import find_difference
from psiphon_vpn.policy import names
from psiphon_vpn.policy.base import build_base_table
from psiphon_vpn.policy.guards import build_arp_table, build_egress_guard
from psiphon_vpn.policy.model import Policy, State
from psiphon_vpn.policy.ruleset import Table
from psiphon_vpn.policy.values import parse_names

pytestmark = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="needs root and namespaces")]

OPEN = build_base_table(make_policy(State.OPEN))


def differ(kernel: Kernel, table: Table) -> str | None:
    def inside(netlink: NftSocket) -> str | None:
        generation = netlink.read_generation()
        image = read_image(netlink, [(table.family, table.name, table.name)], generation=generation)
        assert image is not None
        return find_difference(image, [table])

    return kernel.with_netlink(inside)


@pytest.mark.parametrize("name", golden_tables())
def test_the_kernel_says_of_every_table_what_the_policy_says(kernel: Kernel, name: str) -> None:
    table = golden_tables()[name]
    kernel.nft(table.render_replacement())
    assert differ(kernel, table) is None


def test_and_of_the_tables_beside_it(kernel: Kernel) -> None:
    egress = build_egress_guard(IDENTITY, parse_names("lo"), LINKS.dhcp_servers)
    assert egress is not None
    for table in (egress, build_arp_table()):
        kernel.nft(table.render_replacement())
        assert differ(kernel, table) is None


@given(policies)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_kernel_says_of_any_policy_what_the_policy_says(kernel: Kernel, policy: Policy) -> None:
    table = build_base_table(policy)
    kernel.nft(table.render_replacement())
    assert differ(kernel, table) is None


CHANGES = {
    "a name that begins like one": ('oifname "PsiphonTUN" goto refused', 'oifname "Psi*" goto refused'),
    "another name": ('iifname { "eth0" } counter drop', 'iifname { "eth1" } counter drop'),
    "one name more": ('iifname "PsiphonTUN" counter drop', 'iifname { "PsiphonTUN", "eth0" } counter drop'),
    "another index": ('oif "0000000000000001" goto', 'oif "0000000000000002" goto'),
    "another verdict": ("meta skuid 64190 counter goto refused", "meta skuid 64190 counter accept"),
    "another chain": ("jump to_wire", "jump to_tunnel"),
    "another address": ("ip daddr 10.200.3.2 udp", "ip daddr 9.9.9.9 udp"),
    "another network": ("ip saddr 10.200.3.0/24 drop", "ip saddr 10.200.0.0/16 drop"),
    "an address in a set": ("192.168.0.0/16 } accept", "192.168.0.0/16, 9.9.9.9 } accept"),
    "another gateway": ("rt ip nexthop != { 192.0.2.1 }", "rt ip nexthop != { 192.0.2.7 }"),
    "another resolver": ("dnat ip to 10.200.3.2", "dnat ip to 9.9.9.9"),
    "the rest is a comment": ('oifname { "eth0" } counter drop', 'oifname { "eth0" } accept'),
}


@pytest.mark.requirement("R1", "B2")
@pytest.mark.parametrize("change", CHANGES)
def test_a_value_that_the_policy_does_not_have_is_noticed(kernel: Kernel, change: str) -> None:
    """Whatever nft may have read into the text."""
    before, after = CHANGES[change]
    text = OPEN.render_replacement()
    assert before in text
    kernel.nft(text.replace(before, after, 1))
    assert differ(kernel, OPEN) is not None


MARKS = {
    "no mark": "",
    "another bit": f"meta mark set meta mark or {names.ACCEPTED_BIT << 1:#x} ",
    "a whole mark": f"meta mark set {names.ACCEPTED_BIT:#x} ",
    "the bit alone": f"meta mark set meta mark and {names.ACCEPTED_BIT:#x} ",
}


@pytest.mark.requirement("B4")
@pytest.mark.parametrize("change", MARKS)
def test_an_egress_guard_that_accepts_with_another_mark_is_noticed(kernel: Kernel, change: str) -> None:
    egress = build_egress_guard(IDENTITY, parse_names("lo"), LINKS.dhcp_servers)
    assert egress is not None
    setting = f"meta mark set meta mark or {names.ACCEPTED_BIT:#x} "
    assert setting in egress.render()
    kernel.nft(egress.render_replacement().replace(setting, MARKS[change], 1))
    assert "sets another mark" in (differ(kernel, egress) or "")


def test_a_rule_that_is_missing_in_one_chain_and_too_many_in_another_is_noticed(kernel: Kernel) -> None:
    text = re.sub(r"\t\tct state invalid counter drop\n", "", OPEN.render_replacement())
    kernel.nft(text.replace("\t\tgoto refused\n", "\t\tgoto refused\n\t\tgoto refused\n", 1))
    assert "rules instead of" in (differ(kernel, OPEN) or "")


def test_an_interface_called_like_an_index_is_noticed_where_nft_takes_its_name(kernel: Kernel) -> None:
    """The control: nft reads an index that is written as a bare number as a name first."""
    kernel.ip("link", "add", "1", "type", "veth", "peer", "name", "far")
    kernel.nft(OPEN.render_replacement().replace('oif "0000000000000001"', "oif 1"))
    assert "other interfaces" in (differ(kernel, OPEN) or "")
    kernel.nft(OPEN.render_replacement())
    assert differ(kernel, OPEN) is None
