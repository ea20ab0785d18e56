# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Which servers the stand-in core connects to, and how it reads a list."""

from __future__ import annotations

import pytest
from tests.lab.support import open_tunnel

from psiphon_lab.server_entry import ServerEntry, decode_server_entry, encode_server_entry, set_region
from psiphon_lab.standin_candidates import find_candidates, list_regions, order_candidates, read_server_list
from psiphon_lab.standin_protocols import OSSH, TLS_OSSH


def entry(address: str, region: str, **ports: int) -> ServerEntry:
    return ServerEntry(
        address=address, ports=ports or {OSSH: 1, TLS_OSSH: 2}, secret="s", fingerprint=address, region=region
    )


NL, DE, OLD = entry("192.0.2.1", "NL"), entry("192.0.2.2", "DE"), entry("192.0.2.3", "DE", OSSH=1)


def test_a_list_is_read_line_by_line_and_what_is_no_entry_of_ours_is_left_out() -> None:
    text = "\n".join([encode_server_entry(NL), "zz", "00", encode_server_entry(DE), encode_server_entry(NL)])
    assert read_server_list(text) == [NL, DE]


def test_a_region_can_be_put_into_an_entry_and_changes_nothing_else() -> None:
    changed = decode_server_entry(set_region(encode_server_entry(NL), "SE"))
    assert changed == ServerEntry(
        address=NL.address, ports=NL.ports, secret=NL.secret, fingerprint=NL.fingerprint, region="SE"
    )


def test_region_and_protocols_decide_who_is_a_candidate() -> None:
    def addresses(region: str, *limit: str) -> list[str]:
        return [found.entry.address for found in find_candidates([NL, DE, OLD], region=region, limit=limit)]

    assert addresses("") == [NL.address, DE.address, OLD.address]
    assert addresses("DE") == [DE.address, OLD.address]
    assert addresses("DE", TLS_OSSH) == [DE.address]
    assert addresses("", "QUIC-OSSH") == addresses("FR") == []
    assert list_regions([NL, DE, OLD], limit=()) == ["DE", "NL"]
    assert list_regions([OLD], limit=(TLS_OSSH,)) == []


def test_the_last_server_comes_first_and_each_round_takes_the_next_protocol() -> None:
    found = find_candidates([NL, DE, OLD], region="", limit=())
    assert [candidate.entry for candidate in order_candidates(found, last=DE)] == [DE, NL, OLD]
    assert [found[0].pick_protocol(turn) for turn in range(3)] == [OSSH, TLS_OSSH, OSSH]
    assert found[2].pick_protocol(1) == OSSH


@pytest.mark.lab
def test_the_core_finds_a_server_in_a_list_and_reports_the_available_regions() -> None:
    with open_tunnel() as made:
        dead = entry("198.51.100.200", "DE")
        listed = made.world.directory / "list"
        listed.write_text("\n".join([encode_server_entry(dead), made.server.entry]))
        core = made.start_core("-serverList", str(listed), TargetServerEntry=None)
        core.wait_for("Tunnels", {"count": 1})
        assert core.notices("AvailableEgressRegions") == [{"regions": ["DE", "XX"]}]
        assert [notice["count"] for notice in core.notices("CandidateServers")] == [2]
        assert any("reset: entries 2," in str(notice["message"]) for notice in core.notices("Info"))
        assert {notice["region"] for notice in core.notices("ConnectingServer")} == {"DE", "XX"}
        assert [notice["region"] for notice in core.notices("ConnectedServer")] == ["XX"]
        core.child.terminate()
        assert core.finish() == 0
        bound = made.start_core("-serverList", str(listed), TargetServerEntry=None, LimitTunnelProtocols=[TLS_OSSH])
        bound.wait_for("ActiveTunnel")
        assert [notice["protocol"] for notice in bound.notices("ActiveTunnel")] == [TLS_OSSH]
