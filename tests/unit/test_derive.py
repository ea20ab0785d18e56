# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The policy as a function of state, identity, settings and network."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.policies import IDENTITY, LINKS, make_policy
from tests.policies import policies as any_policies

from psiphon_vpn.config import Settings
from psiphon_vpn.policy.base import build_base_table
from psiphon_vpn.policy.derive import Network, UplinkFacts, WithoutTun, build_situation, derive
from psiphon_vpn.policy.model import Policy, State
from psiphon_vpn.policy.values import InterfaceName, parse_addresses
from psiphon_vpn.policy.wire import may_connect, may_open

assert LINKS.uplink is not None
assert LINKS.tun_index is not None
UPLINK = UplinkFacts(
    name=LINKS.uplink,
    gateways=LINKS.gateways,
    dhcp_servers=LINKS.dhcp_servers,
    versions=LINKS.versions,
)
NETWORK = Network(wires=LINKS.wires, on_link=LINKS.on_link)
SETTINGS = Settings(ipv6_probe=("2001:500:ba3e::2:30", "2001:7fd::1"))
CONNECTED = [State.CONNECTING, State.VERIFYING, State.OPEN]


@pytest.mark.parametrize("state", State)
def test_the_policies_of_the_golden_files_are_derived(state: State) -> None:
    """The policies that the golden files compare to the letter are those that the daemon makes."""
    assert derive(build_situation(state, tun=1, uplink=UPLINK), IDENTITY, SETTINGS, NETWORK) == make_policy(state)


@pytest.mark.requirement("R2")
@pytest.mark.parametrize("state", CONNECTED)
def test_nobody_is_connected_without_a_way_out(state: State) -> None:
    with pytest.raises(ValueError, match="without an uplink"):
        build_situation(state, tun=7, uplink=None)


@pytest.mark.requirement("R2", "R5")
@given(policy=any_policies, uplink=st.none() | st.just(UPLINK), state=st.sampled_from(State))
def test_only_a_connected_service_lets_the_core_out_and_only_an_open_one_the_programs(
    policy: Policy, uplink: UplinkFacts | None, state: State
) -> None:
    """Whatever the network looks like."""
    links = policy.links
    network = Network(
        wires=links.wires,
        container_interfaces=links.container_interfaces,
        headerless=links.headerless,
        on_link=links.on_link,
        bridges=links.bridges,
    )
    if state in CONNECTED:
        uplink = uplink or UPLINK
    found = derive(build_situation(state, tun=7, uplink=uplink), policy.identity, SETTINGS, network)
    assert (may_connect(found), may_open(found)) == (state in CONNECTED, state is State.OPEN)
    assert set(links.wires) <= set(found.links.wires)
    assert uplink is None or uplink.name in found.links.wires, "the core's interface is guarded"
    bare = derive(WithoutTun(), policy.identity, SETTINGS, network)
    assert not may_connect(bare)
    assert bare.links.wires == links.wires
    build_base_table(bare)


def test_a_proxy_by_address_confines_the_core_and_resolvers_are_taken_as_they_are_configured() -> None:
    settings = replace(SETTINGS, upstream_proxy="socks5://192.0.2.77:1080", bootstrap_dns=("192.0.2.53",))
    found = derive(build_situation(State.OPEN, tun=1, uplink=UPLINK), IDENTITY, settings, NETWORK)
    assert found.upstream_proxy is not None
    assert (str(found.upstream_proxy.address), found.upstream_proxy.port) == ("192.0.2.77", 1080)
    assert found.bootstrap_dns == parse_addresses(["192.0.2.53"])


def test_a_way_out_that_no_look_found_among_the_wires_is_guarded() -> None:
    away = replace(UPLINK, name=InterfaceName("wlan0"))
    found = derive(build_situation(State.LOCKED, tun=1, uplink=away), IDENTITY, SETTINGS, NETWORK)
    assert found.links.wires == ("eth0", "wlan0")
