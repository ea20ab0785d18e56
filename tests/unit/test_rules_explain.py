# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""`psiphon-vpn rules explain`: every row, in words and for programs."""

from __future__ import annotations

import json

import pytest

from psiphon_vpn.cli.explain import SECTIONS, describe_match, find_section
from psiphon_vpn.cli.main import run_cli
from psiphon_vpn.policy import permits
from psiphon_vpn.policy.match import TCP, Match


def test_every_row_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(["rules", "explain"]) == 0
    shown = capsys.readouterr().out
    for row in permits.PERMITS:
        assert f"{row.name}: {row.what}\n" in shown
        assert row.why in shown
        assert row.shows in shown


def test_one_row_is_explained_with_what_holds_it_and_how_narrowly(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(["rules", "explain", "core"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("\n\n") == 0
    assert "base table (in these states alone; only through the uplink; not to ports that ask for names: 53" in shown
    assert "wider in     wire guard, egress guard, frame guard, bridge guard" in shown


def test_programs_get_the_rows_that_they_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(["rules", "explain", "--json", "dhcp", "names", "dhcp"]) == 0
    reported = json.loads(capsys.readouterr().out)["rows"]
    assert [row["name"] for row in reported] == ["dhcp", "names"]
    assert reported[0]["who"] == "root or a network manager"
    assert reported[0]["values"].startswith("IPv4, UDP; from port 68; to port 67; to 255.255.255.255, 10.0.0.0/8, ")
    assert reported[1]["within"] == "applications"
    assert reported[1]["states"] == ["OPEN"]


def test_a_row_that_is_not_there_is_reported_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(["rules", "explain", "no\x1brow"]) != 0
    shown = capsys.readouterr()
    assert "there is no row 'no\\x1brow'" in shown.err
    assert not shown.out


def test_every_row_is_in_one_section_and_says_what_it_matches() -> None:
    assert sorted(row.name for rows in SECTIONS.values() for row in rows) == sorted(row.name for row in permits.PERMITS)
    for row in permits.PERMITS:
        assert find_section(row)
        assert describe_match(row.match)
    assert describe_match(Match(protocols=(TCP,), destination_ports=(443, 80))) == "TCP; to port 443, 80"
