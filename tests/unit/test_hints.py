# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Hints come through a stranger's tunnel, into psiphon-user's file: only a few public addresses ever count."""

from __future__ import annotations

import ipaddress
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psiphon_vpn.policy import names
from psiphon_vpn.policy.values import Address
from psiphon_vpn.servers.hints import (
    HINTS_PER_HOST,
    MAX_AGE,
    MAX_BYTES,
    MAX_HINTS,
    Hint,
    forget_hint,
    is_public,
    merge_hints,
    parse_hints,
    read_hints,
    render_hints,
    select_hints,
    write_hints,
)
from psiphon_vpn.stored_files import StoredError

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)
HOSTS = ("lists.example", "mirror.example")

PLANTED = {
    "this network": ["0.0.0.0", "0.1.2.3", "::"],
    "loopback": ["127.0.0.1", "127.255.255.254", "::1"],
    "private": ["10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1", "fc00::1", "fd12:3456:789a::1"],
    "the tunnel's own": [names.TUN_IPV4, names.RESOLVER_IPV4, names.TUN_IPV6],
    "shared by a provider": ["100.64.0.1", "100.127.255.255"],
    "link-local": ["169.254.169.254", "fe80::1", "febf::1"],
    "site-local": ["fec0::1"],
    "multicast": ["224.0.0.1", "239.255.255.255", "ff02::1", "ff0e::1"],
    "broadcast and reserved": ["255.255.255.255", "240.0.0.1"],
    "for documents and tests": ["192.0.2.1", "198.51.100.1", "203.0.113.1", "198.18.0.1", "2001:db8::1", "3fff::1"],
    "IPv4 inside of IPv6": ["::ffff:8.8.8.8", "::ffff:192.168.1.1", "::8.8.8.8", "64:ff9b::8.8.8.8", "64:ff9b:1::1"],
    "6to4 and Teredo": ["2002:c0a8:101::1", "2002:808:808::1", "2001:0:1:2::3", "192.88.99.1"],
    "ORCHID, benchmarks, discard": ["2001:20::1", "2001:2::1", "100::1", "5f00::1"],
}
PUBLIC = ("52.216.1.1", "11.0.0.80", "192.0.3.1", "223.255.255.255", "2600:1f00::1", "2a00::1", "2001:4860::8888")


def parse(text: str) -> Address:
    return ipaddress.ip_address(text)


def hint(text: str, *, host: str = HOSTS[0], age: timedelta = timedelta(0)) -> Hint:
    return Hint(host=host, address=parse(text), seen=NOW - age)


def select(*hints: Hint, on_link: tuple[str, ...] = ()) -> list[str]:
    networks = [ipaddress.ip_network(text) for text in on_link]
    return [str(found.address) for found in select_hints(hints, hosts=HOSTS, now=NOW, on_link=networks)]


@pytest.mark.requirement("R19")
@pytest.mark.parametrize("text", [text for texts in PLANTED.values() for text in texts])
def test_a_planted_address_is_never_used(text: str) -> None:
    assert not is_public(parse(text))
    assert select(hint(text)) == []
    assert select_hints(merge_hints((), HOSTS[0], [parse(text)], now=NOW), hosts=HOSTS, now=NOW) == ()


@pytest.mark.parametrize("text", PUBLIC)
def test_a_public_address_is_used(text: str) -> None:
    assert select(hint(text)) == [text]


@pytest.mark.requirement("R19")
@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)))
def test_what_python_knows_for_special_is_never_public(address: Address) -> None:
    if is_public(address):
        assert not address.is_private
        assert not address.is_multicast
        assert not address.is_reserved
        assert not address.is_loopback
        assert not address.is_link_local
        if isinstance(address, ipaddress.IPv6Address):
            assert address.ipv4_mapped is None
            assert address.sixtofour is None
            assert address.teredo is None
            assert not address.is_site_local


@pytest.mark.requirement("R19")
@given(st.sampled_from(["eth0", "1", "a b", "%"]).map(lambda scope: f"2600::1%{scope}"))
def test_an_address_with_a_scope_is_none(text: str) -> None:
    content = json.dumps({"hints": [{"host": HOSTS[0], "address": text, "seen": NOW.isoformat()}]}).encode()
    assert select(*parse_hints(content)) == []


@pytest.mark.requirement("R19")
def test_an_address_of_this_machines_links_is_never_used_even_a_public_one() -> None:
    assert select(hint("11.0.0.80"), hint("2600::5"), on_link=("11.0.0.0/24", "2600::/64")) == []
    assert select(hint("11.0.1.80"), on_link=("11.0.0.0/24",)) == ["11.0.1.80"]


def test_only_hosts_of_the_profile_in_use_count() -> None:
    assert select(hint("11.0.0.80", host="elsewhere.example"), hint("11.0.0.81", host="LISTS.example")) == []


def test_old_hints_and_those_of_the_future_are_not_used() -> None:
    assert select(hint("11.0.0.80", age=MAX_AGE + timedelta(seconds=1))) == []
    assert select(hint("11.0.0.80", age=timedelta(days=-2))) == []
    assert select(hint("11.0.0.80", age=MAX_AGE)) == ["11.0.0.80"]


def test_they_are_few_and_the_newest_come_first() -> None:
    many = [hint(f"11.0.0.{n}", age=timedelta(minutes=n)) for n in range(1, 100)]
    assert select(*many) == [f"11.0.0.{n}" for n in range(1, HINTS_PER_HOST + 1)]
    both = [hint("11.0.0.9", host=HOSTS[1]), hint("11.0.0.8"), hint("11.0.0.7", age=timedelta(hours=1))]
    assert select(*both) == ["11.0.0.8", "11.0.0.9", "11.0.0.7"], "the profile's first host before its mirrors"
    hosts = [f"h{n}.example" for n in range(100)]
    planted = [hint("11.0.0.9", host=host) for host in hosts]
    assert len(select_hints(planted, hosts=hosts, now=NOW)) == MAX_HINTS


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "hints.json"
    known = (hint("11.0.0.80"), hint("2600::80", host=HOSTS[1], age=timedelta(days=3)))
    write_hints(path, known)
    assert read_hints(path) == known
    assert path.stat().st_mode & 0o777 == 0o600
    write_hints(path, known[:1])
    assert read_hints(path) == known[:1]
    assert [child.name for child in tmp_path.iterdir()] == ["hints.json"]


def test_an_address_that_is_seen_again_is_there_once_and_a_failed_one_is_forgotten() -> None:
    known = merge_hints((hint("11.0.0.80", age=timedelta(days=3)),), HOSTS[0], [parse("11.0.0.80")], now=NOW)
    assert known == (hint("11.0.0.80"),)
    other = hint("11.0.0.80", host=HOSTS[1])
    assert forget_hint((*known, other), known[0]) == (other,)
    flood = [parse(f"11.0.1.{n}") for n in range(200)]
    assert len(merge_hints((), HOSTS[0], flood, now=NOW)) == HINTS_PER_HOST


@pytest.mark.requirement("R24")
@given(st.binary(max_size=300))
def test_whatever_bytes_the_file_has_there_are_hints_or_one_error(content: bytes) -> None:
    try:
        found = parse_hints(content)
    except StoredError:
        return
    assert all(isinstance(one, Hint) for one in found)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
_TIME = st.one_of(st.text(max_size=30), st.datetimes().map(str), st.just("0001-01-01T00:00:00+23:59"))
_ENTRY = st.fixed_dictionaries(
    {
        "host": st.sampled_from([*HOSTS, "x", ""]) | _JSON,
        "address": st.one_of(
            st.ip_addresses().map(str), st.sampled_from(PLANTED["private"]), st.text(max_size=20), _JSON
        ),
        "seen": _TIME | st.just(NOW.isoformat()) | _JSON,
    }
)


@pytest.mark.requirement("R19", "R24")
@given(st.lists(_ENTRY | _JSON, max_size=30))
def test_whatever_the_file_says_few_public_addresses_of_known_hosts_come_out(entries: list[object]) -> None:
    content = json.dumps({"hints": entries}).encode()
    try:
        found = parse_hints(content)
    except StoredError:
        return
    chosen = select_hints(found, hosts=HOSTS, now=NOW)
    assert len(chosen) <= HINTS_PER_HOST * len(HOSTS)
    for one in chosen:
        assert one.host in HOSTS
        assert is_public(one.address)
    assert parse_hints(render_hints(chosen)) == tuple(
        Hint(host=one.host, address=one.address, seen=one.seen.replace(microsecond=0)) for one in chosen
    )


@pytest.mark.requirement("R24")
def test_a_file_that_is_missing_or_odd_has_no_hints(tmp_path: Path) -> None:
    path = tmp_path / "hints.json"
    assert read_hints(path) == ()
    os.mkfifo(path)
    assert read_hints(path) == ()
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").write_bytes(render_hints([hint("11.0.0.80")]))
    assert read_hints(path) == (), "a link is not followed"
    path.unlink()
    path.write_bytes(render_hints([hint("11.0.0.80")])[:-9])
    assert read_hints(path) == (), "truncated"
    path.write_bytes(render_hints([hint("11.0.0.80")]) + b" " * MAX_BYTES)
    assert read_hints(path) == (), "too large"
    path.write_bytes(render_hints([hint("11.0.0.80")]))
    assert read_hints(path) == (hint("11.0.0.80"),)
