# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What a comparison of nft's listings ignores: elements, name and owner; rules it never ignores."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psiphon_vpn.linux.reading import parse_listing

LISTING = """table inet psiphon_filter {
\tset tunnel_open {
\t\ttype ifname
\t\tflags timeout
\t}

\tchain output {
\t\ttype filter hook output priority filter; policy drop;
\t\toifname "lo" accept comment "this machine to itself"
\t\tcounter reject
\t}

\tchain refused {
\t\tmeta l4proto tcp reject with tcp reset
\t}
}
"""
ELEMENTS = (
    '\t\tflags timeout\n\t\telements = { "PsiphonTUN" timeout 5s expires 3s100ms,\n\t\t\t     "lo" timeout 5s }\n'
)


def test_elements_make_no_difference_on_one_line_or_on_many() -> None:
    plain = parse_listing(LISTING)
    assert parse_listing(LISTING.replace("\t\tflags timeout\n", ELEMENTS)) == plain
    one = '\t\tflags timeout\n\t\telements = { "PsiphonTUN" timeout 5s expires 3s }\n'
    assert parse_listing(LISTING.replace("\t\tflags timeout\n", one)) == plain


def test_the_tables_own_name_and_owner_make_no_difference() -> None:
    plain = parse_listing(LISTING)
    assert parse_listing(LISTING.replace("psiphon_filter {", "psiphon_scratch {\n\tflags dormant"), copy=True) == plain
    owned = "psiphon_filter { # progname nft pid 7\n\tflags owner"
    assert parse_listing(LISTING.replace("psiphon_filter {", owned)) == plain


@pytest.mark.requirement("R4")
@pytest.mark.parametrize(
    "flags", ["flags dormant", "flags owner,dormant", "flags dormant, owner", "flags owner dormant"]
)
def test_a_table_that_is_dormant_is_not_the_table(flags: str) -> None:
    assert parse_listing(LISTING.replace("psiphon_filter {", f"psiphon_filter {{\n\t{flags}")) != parse_listing(LISTING)


@pytest.mark.requirement("R4")
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("policy drop", "policy accept"),
        ('\t\toifname "lo" accept comment "this machine to itself"\n', ""),
        ("\t\tcounter reject\n", "\t\taccept\n\t\tcounter reject\n"),
        ("hook output priority filter", "hook output priority filter + 1"),
        ("type ifname", "type ifname . ifname"),
        ("\t\tflags timeout\n", ""),
        ('"this machine to itself"', '"something else"'),
        ("\tchain refused {", "\tchain refuse {"),
    ],
)
def test_whatever_says_what_may_pass_makes_a_difference(old: str, new: str) -> None:
    assert old in LISTING
    assert parse_listing(LISTING.replace(old, new)) != parse_listing(LISTING)


@pytest.mark.requirement("R4")
def test_the_order_of_rules_makes_a_difference() -> None:
    first, second = '\t\toifname "lo" accept comment "this machine to itself"\n', "\t\tcounter reject\n"
    assert parse_listing(LISTING.replace(first + second, second + first)) != parse_listing(LISTING)


@pytest.mark.parametrize(
    "text", ["", "}", "table inet x {", "chain c {\n}", "table inet x\n}", "Error: no such table\n"]
)
def test_what_is_no_listing_of_a_table_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not the listing"):
        parse_listing(text)


@given(st.text(max_size=300))
def test_no_text_breaks_it_but_by_value_error(text: str) -> None:
    try:
        parse_listing(text)
    except ValueError as error:
        assert str(error) == "not the listing of a table"


@given(st.lists(st.sampled_from(["accept", "drop", "elements = {", "}", "chain c {", "elements = { x }", "x }"])))
def test_a_rule_can_not_be_hidden_behind_the_words_of_a_set(lines: list[str]) -> None:
    text = "\n".join(["table inet t {", "chain output {", "accept", "}", *lines, "}"])
    assert "accept" in parse_listing(text).lines
