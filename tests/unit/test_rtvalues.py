# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""rtnetlink messages are read without a failure, whatever their bytes."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from psiphon_vpn.linux.netlink import write_attribute
from psiphon_vpn.linux.rtnetlink import RTM_NEWADDR, RTM_NEWLINK, RTM_NEWROUTE, RTM_NEWRULE
from psiphon_vpn.linux.rtvalues import (
    decode_address,
    decode_default,
    decode_link,
    decode_route,
    decode_rule,
    encode_name,
    read_name,
)

HEADS = {RTM_NEWLINK: 16, RTM_NEWADDR: 8, RTM_NEWROUTE: 12, RTM_NEWRULE: 12}
ATTRIBUTES = st.lists(st.tuples(st.integers(0, 40), st.binary(max_size=24)), max_size=8)


@given(st.sampled_from(sorted(HEADS)), st.sampled_from([0, 2, 10, 17]), st.binary(max_size=16), ATTRIBUTES, st.binary())
def test_no_bytes_of_any_kind_make_a_reading_fail(
    kind: int, family: int, head: bytes, attributes: list[tuple[int, bytes]], noise: bytes
) -> None:
    body = (bytes([family]) + head).ljust(HEADS[kind], b"\0")[: HEADS[kind]]
    body += b"".join(write_attribute(number, value) for number, value in attributes)
    for decode in (decode_link, decode_address, decode_route, decode_default, decode_rule):
        for data in (body, noise, body + noise, body[: len(noise)]):
            decode(kind, data)


@given(st.binary(min_size=1, max_size=15).filter(lambda name: b"\0" not in name))
def test_a_name_of_any_bytes_comes_back_as_it_was(name: bytes) -> None:
    assert encode_name(read_name(name)) == name + b"\0"


def test_a_rule_with_something_that_none_of_ours_has_is_another_one() -> None:
    plain = struct.pack("=BBBBBBBBI", 2, 0, 0, 0, 254, 0, 0, 1, 0) + write_attribute(6, struct.pack("=I", 5075))
    found = decode_rule(RTM_NEWRULE, plain)
    assert found is not None
    assert not found.rule.odd
    harmless = plain + write_attribute(14, b"\xff" * 4) + write_attribute(29, b"\xff\xff") + write_attribute(99, b"new")
    same = decode_rule(RTM_NEWRULE, harmless)
    assert same is not None
    assert same.rule == found.rule
    for number, value in ((2, bytes(4)), (14, bytes(4)), (12, bytes(8)), (19, b"\1"), (23, bytes(4)), (16, bytes(4))):
        other = decode_rule(RTM_NEWRULE, plain + write_attribute(number, value))
        assert other is not None
        assert other.rule.odd is (number != 16), number
    black_hole = decode_rule(RTM_NEWRULE, plain[:7] + b"\x06" + plain[8:])
    assert black_hole is not None
    assert black_hole.rule.odd
