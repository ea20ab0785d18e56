# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What an attacker calls an interface, or writes after an address, never becomes part of a rule."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests import hostile
from tests.policies import IDENTITY, golden_tables, policies

from psiphon_vpn.network.uplink import (
    DefaultRoute,
    Interface,
    Snapshot,
    choose_uplink,
    find_container_interfaces,
    find_headerless,
    find_odd_wires,
    find_wires,
)
from psiphon_vpn.policy import model, names
from psiphon_vpn.policy.base import build_base_table, build_drop_only
from psiphon_vpn.policy.guards import build_egress_guard, build_wire_guard
from psiphon_vpn.policy.model import Endpoint, Identity, Links, Policy, State
from psiphon_vpn.policy.ruleset import Hook, Rule
from psiphon_vpn.policy.values import (
    InterfaceName,
    decode_name,
    name_by_index,
    parse_address,
    parse_addresses,
    quote_set,
)

USUAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,14}")
SCOPES = (
    st.sampled_from(["lo", "lo;accept;", "1 accept", '"', "}", "eth0\naccept"]) | st.text(min_size=1, max_size=9)
).filter(lambda scope: "%" not in scope)


@given(hostile.names)
def test_a_name_of_another_form_is_no_name_to_the_policy(name: bytes) -> None:
    text = decode_name(name)
    assert text.encode("utf-8", "surrogateescape") == name, "no byte of the name is lost"
    found = InterfaceName.of(text)
    assert (found is not None) == bool(USUAL.fullmatch(text))
    if found is None:
        with pytest.raises(ValueError, match="form"):
            InterfaceName(text)
        for links in ({"uplink": text}, {"wires": (text,)}, {"headerless": (text,)}):
            with pytest.raises(ValueError, match="not checked"):
                Links(**links)
        with pytest.raises(ValueError, match="not checked"):
            Hook(kind="filter", hook="egress", priority=0, policy="drop", devices=(text,))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", hostile.KNOWN)
def test_every_known_bad_name_is_one(name: bytes) -> None:
    assert hostile.is_name(name)
    assert InterfaceName.of(decode_name(name)) is None


@pytest.mark.requirement("R1", "R4", "R19")
@given(policies)
def test_what_stands_in_quotes_is_a_name_of_the_policy_or_an_index(policy: Policy) -> None:
    links = policy.links
    allowed = {
        names.TUN_NAME,
        *links.wires,
        *(links.container_interfaces or ()),
        *((links.uplink,) if links.uplink else ()),
    }
    indexes = {f"{links.tun_index or 0:016d}", f"{names.LOOPBACK_INDEX:016d}"}
    indexes |= {f"{bridge.index:016d}" for bridge in links.bridges}
    tables = [build_base_table(policy), build_drop_only(build_base_table(policy)), build_wire_guard(policy.identity)]
    egress = build_egress_guard(policy.identity, links.wires, links.dhcp_servers)
    for table in [*tables, *([egress] if egress is not None else [])]:
        for chain in table.chains:
            for rule in chain.rules:
                for before, quoted in re.findall(r'(\S+ (?:!= )?(?:\{ (?:"[^"]*", )*)?)"([^"]*)"', rule.text):
                    by_index = before.startswith(("iif ", "oif "))
                    assert quoted in (indexes if by_index else allowed), rule.text
                assert rule.text.count('"') % 2 == 0
        assert re.sub(r'"[^"\n]*"|#[^\n]*', "", table.render()).isascii()


@pytest.mark.requirement("R19")
@given(policies)
def test_where_a_wire_has_an_odd_name_only_what_is_named_is_a_containers_interface(policy: Policy) -> None:
    links = policy.links
    for chain in build_base_table(policy).chains:
        texts = [rule.text for rule in chain.rules]
        if chain.name == "forward" and links.container_interfaces is not None:
            refusals = [
                f"{side}name != {quote_set((InterfaceName(names.TUN_NAME), *links.container_interfaces))} counter drop"
                for side in ("iif", "oif")
            ]
            accepting = [index for index, text in enumerate(texts) if text.endswith(" accept")]
            assert all(texts.index(text) < min(accepting, default=len(texts)) for text in refusals)
        for text in texts:
            if "ct status snat accept" in text or (" dnat ip to " in text and chain.name == "dns_prerouting"):
                assert ("name != {" in text) == (links.container_interfaces is None)
                assert links.container_interfaces is None or f"name {quote_set(links.container_interfaces)} " in text


@given(st.integers(1, 2**31 - 1))
def test_no_interface_can_be_called_as_an_index_is_written(index: int) -> None:
    """`oif 7` is the interface with the name 7, if there is one."""
    written = name_by_index(index).strip('"')
    assert not hostile.is_name(written.encode())
    assert int(written, 10) == index


@given(st.ip_addresses(v=6), SCOPES)
@example(ipaddress.IPv6Address("fe80::1"), "lo;accept;")
def test_an_address_has_no_scope_in_a_rule(address: ipaddress.IPv6Address, scope: str) -> None:
    text = f"{address}%{scope}"
    try:
        scoped = ipaddress.ip_address(text)
    except ValueError:
        return
    assert parse_address(text) == address
    for build in (
        lambda: Links(gateways=(scoped,)),
        lambda: Links(dhcp_servers=(scoped,)),
        lambda: Endpoint(address=scoped, port=1),
        lambda: Policy(state=State.LOCKED, identity=IDENTITY, ipv6_probe=(scoped,)),
        lambda: Policy(state=State.LOCKED, identity=IDENTITY, bootstrap_dns=(scoped,)),
        lambda: quote_set((scoped,)),
        lambda: quote_set((text,)),
    ):
        with pytest.raises(ValueError, match=r"may stand|not checked"):
            build()


@given(st.text(max_size=12))
@example("10.0.0.0/8 } accept #")
@example("1 accept")
def test_a_text_that_is_no_network_stands_in_no_set(text: str) -> None:
    try:
        rendered = quote_set((text,))
    except ValueError:
        return
    ipaddress.ip_network(text)
    assert re.fullmatch(r"\{ [0-9a-f.:/]+ \}", rendered)


@example('-""-')
@example('a","b')
@example('a"{"b')
@given(hostile.names.map(decode_name))
def test_a_rule_with_such_a_name_in_it_is_refused_once_more(name: str) -> None:
    if USUAL.fullmatch(name):
        assert Rule(text=f'oifname "{name}" drop').text
        return
    if re.fullmatch(r"[A-Za-z0-9._-]+", name):
        return  # in another form, but harmless in quotes
    with pytest.raises(ValueError, match="not the text"):
        Rule(text=f'oifname "{name}" drop')


@pytest.mark.parametrize("text", ["oif 7 accept", "iif != 7 drop", "oif { 7 } drop", "accept\ndrop", "accept # x"])
def test_what_no_rule_is_written_with_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not the text"):
        Rule(text=text)


def test_no_value_of_the_policy_is_text() -> None:
    """A new field of plain text would open the path that these tests close."""
    for kind in (Endpoint, Identity, Links, Policy):
        for field in fields(kind):
            assert not re.search(r"\bstr\b", str(field.type)), f"{kind.__name__}.{field.name}: {field.type}"
    assert model.State("OPEN")


@given(st.integers() | st.text(max_size=4) | st.booleans())
def test_a_number_of_the_policy_is_one(value: object) -> None:
    builders: tuple[tuple[int, int, Callable[[Any], object]], ...] = (
        (1, 0xFFFF, lambda number: Endpoint(address=parse_address("192.0.2.1"), port=number)),
        (1, 0xFFFF, lambda number: Policy(state=State.LOCKED, identity=IDENTITY, socks_port=number)),
        (0, 0xFFFFFFFE, lambda number: Identity(uid=number, gid=1)),
    )
    for low, high, build in builders:
        if type(value) is int and low <= value <= high:
            build(value)
        else:
            with pytest.raises(ValueError, match="not checked"):
                build(value)


def _snapshot(texts: list[str], uplink: int) -> Snapshot:
    interfaces = tuple(
        Interface(index=index, name=text, up=True, headerless=index % 2 == 0, addresses=((4, f"192.0.2.{index}"),))
        for index, text in enumerate(texts, start=2)
    )
    return Snapshot(
        interfaces=interfaces,
        defaults=(DefaultRoute(version=4, index=2 + uplink % len(texts), gateway="192.0.2.1", metric=0),),
    )


@given(st.lists(hostile.names, min_size=1, max_size=5, unique=True), st.integers(0, 9))
def test_every_wire_is_known_by_its_name_or_whatever_is_not_named_is_one(found: list[bytes], uplink: int) -> None:
    texts = [decode_name(name) for name in found if name not in {b"lo", names.TUN_NAME.encode()}]
    if not texts:
        return
    snapshot = _snapshot(texts, uplink)
    container = Interface(index=99, name="docker0", up=True, kind="bridge")
    snapshot = replace(snapshot, interfaces=(*snapshot.interfaces, container))
    wires, odd, inner = find_wires(snapshot), find_odd_wires(snapshot), find_container_interfaces(snapshot)
    assert {*wires, *odd} == set(texts)
    assert inner == (("docker0",) if odd else None)
    chosen = choose_uplink(snapshot)
    assert (chosen is None) == (texts[uplink % len(texts)] in odd), "none with an odd name: the core is given a name"
    assert set(find_headerless(snapshot)) <= set(wires)
    links = Links(
        wires=wires, container_interfaces=inner, uplink=chosen.name if chosen else None, gateways=parse_addresses([])
    )
    assert build_base_table(Policy(state=State.CONNECTING, identity=IDENTITY, links=links)).render().isascii()


def test_the_golden_tables_are_built_from_checked_values_too() -> None:
    assert golden_tables()
