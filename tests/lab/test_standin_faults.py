# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The stand-in core's faults: each has its effect; otherwise a test with it would prove nothing."""

from __future__ import annotations

import json
import signal
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.lab.support import Tunnel

from psiphon_lab import addresses as plan
from psiphon_lab.dns_message import TXT
from psiphon_lab.namespace import PATIENCE
from psiphon_lab.standin_faults import KINDS, FaultPlan, parse_faults, write_faults
from psiphon_lab.waiting import wait_until


def is_dial(frame: bytes) -> bool:
    """An IPv4 packet that begins something: all but a TCP segment without SYN (RFC 9293, 3.1)."""
    if frame[12:14] != b"\x08\x00":
        return False
    tcp = frame[14 + 4 * (frame[14] & 15) :] if frame[23] == 6 else b""
    return not tcp or bool(tcp[13] & 2)


def test_an_unknown_fault_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown fault"):
        parse_faults(json.dumps({"faults": [{"kind": "nosuch"}]}), now=0.0)


def test_a_fault_acts_after_its_time_and_once_if_taken(tmp_path: Path) -> None:
    path = tmp_path / "faults.json"
    write_faults(path, {"kind": "junk"}, {"kind": "exit", "after": 1000})
    plan_ = FaultPlan(path)
    assert plan_.find("exit") is None
    assert plan_.take("junk") is not None
    assert plan_.take("junk") is None
    write_faults(path, {"kind": "exit", "code": 4})
    plan_.reload()
    found = plan_.find("exit")
    assert found is not None
    assert found.number("code", 0) == 4
    write_faults(path)
    plan_.reload()
    assert plan_.find("exit") is None


def test_every_fault_has_a_test() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    assert [kind for kind in KINDS if f'"kind": "{kind}"' not in text] == []


@pytest.mark.lab
class TestRunning:
    """With a running core."""

    def test_it_exits_with_the_code_asked_for_at_start(self, tunnel: Tunnel) -> None:
        core = tunnel.start_core(faults=({"kind": "exit", "code": 3},))
        assert core.finish() == 3
        assert core.raw == b""

    def test_it_exits_later_without_a_farewell(self, tunnel: Tunnel) -> None:
        core = tunnel.connect()
        write_faults(tunnel.faults, {"kind": "exit", "code": 0})
        assert core.finish() == 0
        assert core.notices("Tunnels") == [{"count": 1}]
        assert core.notices("Exiting") == []

    def test_it_dies_by_a_signal(self, tunnel: Tunnel) -> None:
        core = tunnel.connect()
        write_faults(tunnel.faults, {"kind": "signal", "number": int(signal.SIGSEGV)})
        assert core.finish() == -signal.SIGSEGV

    def test_it_hangs_and_does_not_heed_sigterm(self, tunnel: Tunnel) -> None:
        core = tunnel.connect()
        write_faults(tunnel.faults, {"kind": "hang"})
        wait_until(lambda: core.is_pending(signal.SIGTERM, which="SigBlk"), "the core hangs")
        core.child.terminate()
        wait_until(lambda: core.is_pending(signal.SIGTERM, which="ShdPnd"), "the signal is there")
        assert core.child.poll() is None
        assert tunnel.resolver_is_silent()
        core.child.kill()
        assert core.finish() == -signal.SIGKILL

    def test_it_works_without_a_word(self, tunnel: Tunnel) -> None:
        core = tunnel.start_core(faults=({"kind": "silent"},))
        wait_until(lambda: bool(tunnel.new_flows()), "the core's connection")
        assert tunnel.fetch(plan.INTERNET4) == plan.SERVER4
        core.child.terminate()
        assert core.finish() == 0
        assert core.raw == b""

    def test_it_closes_standard_error_and_goes_on(self, tunnel: Tunnel) -> None:
        core = tunnel.connect()
        write_faults(tunnel.faults, {"kind": "close_stderr"})
        core.read_to_end()
        assert core.child.poll() is None
        assert tunnel.fetch(plan.INTERNET4) == plan.SERVER4

    def test_it_floods_standard_error(self, tunnel: Tunnel) -> None:
        core = tunnel.connect()
        write_faults(tunnel.faults, {"kind": "flood", "bytes": 4 << 20})
        while len(core.raw) < 4 << 20:
            assert core.read(PATIENCE)
        assert core.raw.count(b"junk") > 100_000

    def test_it_writes_lines_that_are_no_notices(self, tunnel: Tunnel) -> None:
        core = tunnel.start_core(faults=({"kind": "junk"},))
        core.wait_for("ActiveTunnel")  # not Tunnels: the junk claims some
        lines = core.raw.split(b"\n")
        assert b"null" in lines
        assert any(line.startswith(b"panic:") for line in lines)
        assert any(b"\x00" in line for line in lines)

    def test_it_writes_a_line_of_any_length(self, tunnel: Tunnel) -> None:
        core = tunnel.start_core(faults=({"kind": "oversize", "bytes": 2 << 20},))
        core.wait_for("Tunnels", {"count": 1})
        assert max(map(len, core.raw.split(b"\n"))) > 2 << 20

    def test_a_liar_claims_a_tunnel_and_dials_nobody(self, tunnel: Tunnel) -> None:
        mark = tunnel.world.mark()
        core = tunnel.start_core(faults=({"kind": "liar"},))
        core.wait_for("Info", {"message": "DialPacketTunnelChannel: established channel"})
        assert core.notices("Tunnels") == [{"count": 1}]
        assert tunnel.resolver_is_silent()
        assert tunnel.new_flows() == []
        # An acknowledgement may still come from the connection of the previous core, which has just been killed.
        assert not [frame for frame in tunnel.world.frames_since(mark) if is_dial(frame.data)]

    @pytest.mark.parametrize("fault", [{"kind": "blackhole"}, {"kind": "no_packet_channel"}])
    def test_a_real_tunnel_that_carries_nothing(self, tunnel: Tunnel, fault: dict[str, str]) -> None:
        core = tunnel.start_core(faults=(fault,))
        core.wait_for("Tunnels", {"count": 1})
        assert tunnel.resolver_is_silent()
        assert len(tunnel.new_flows()) == 1
        core.wait_for("Warning" if fault["kind"] == "no_packet_channel" else "Info")
        warned = [data for data in core.notices("Warning") if "dial packet tunnel channel failed" in data["message"]]
        assert bool(warned) == (fault["kind"] == "no_packet_channel")

    def test_a_blackhole_carries_again_when_it_behaves_again(self, tunnel: Tunnel) -> None:
        tunnel.connect()
        write_faults(tunnel.faults, {"kind": "blackhole"})
        wait_until(tunnel.resolver_is_silent, "the blackhole")
        write_faults(tunnel.faults)
        wait_until(lambda: not tunnel.resolver_is_silent(), "the end of the blackhole")
        assert tunnel.ask(plan.RESOLVER4, plan.RESOLVER_NAME, TXT) == plan.MARK_TUNNEL

    def test_the_tunnel_count_flaps(self, tunnel: Tunnel) -> None:
        core = tunnel.connect()
        write_faults(tunnel.faults, {"kind": "flap", "period": 0.1})
        core.wait_for("Tunnels", {"count": 0}, at_least=3)
        counts = [data["count"] for data in core.notices("Tunnels")]
        assert counts == [1, 0] * (len(counts) // 2) + [1] * (len(counts) % 2)

    def test_the_connection_drops_and_stays_away_until_the_fault_ends(self, tunnel: Tunnel) -> None:
        core = tunnel.connect()
        write_faults(tunnel.faults, {"kind": "disconnect"})
        core.wait_for("Tunnels", {"count": 0})
        # When a second further round begins, the next round has ended.
        core.wait_for("CandidateServers", at_least=len(core.notices("CandidateServers")) + 2)
        assert core.notices("Tunnels")[-1] == {"count": 0}
        write_faults(tunnel.faults)
        core.wait_for("Tunnels", {"count": 1}, at_least=2)

    def test_the_data_store_fails(self, tunnel: Tunnel) -> None:
        core = tunnel.start_core(faults=({"kind": "datastore"},))
        assert core.finish() == 1
        assert "error in init" in core.notices("Error")[0]["message"]

    def test_the_data_store_cannot_be_opened(self, tunnel: Tunnel) -> None:
        core = tunnel.start_core(faults=({"kind": "datastore_broken"},))
        assert core.finish() == 1
        assert [data["message"] for data in core.notices("Warning")].count("tryDatastoreOpenDB: reset") == 2
        assert "is a directory" in core.notices("Error")[0]["message"]

    def test_the_data_store_makes_it_crash(self, tunnel: Tunnel) -> None:
        core = tunnel.start_core(faults=({"kind": "datastore_crash"},))
        assert core.finish() == 2
        assert b"tryDatastoreOpenDB(" in core.raw

    def test_the_data_store_fails_without_a_word_if_diagnostics_are_off(self, tunnel: Tunnel) -> None:
        core = tunnel.start_core(faults=({"kind": "datastore"},), EmitDiagnosticNotices=False)
        assert core.finish() == 1
        assert core.raw == b""

    def test_the_port_is_in_use(self, tunnel: Tunnel) -> None:
        core = tunnel.start_core(faults=({"kind": "port_in_use"},))
        assert core.finish() == 0
        assert core.notices("SocksProxyPortInUse") == [{"port": 1081}]
        assert core.notices("Exiting") == []

    def test_no_server_is_a_candidate(self, tunnel: Tunnel) -> None:
        core = tunnel.start_core(faults=({"kind": "no_region"},))
        core.wait_for("CandidateServers", at_least=3)
        assert {data["count"] for data in core.notices("CandidateServers")} == {0}

    def test_no_server_is_known_at_all(self, tunnel: Tunnel) -> None:
        core = tunnel.start_core(faults=({"kind": "empty_list"},))
        core.wait_for("CandidateServers", at_least=3)
        assert core.notices("AvailableEgressRegions") == [{"regions": []}]
        assert {data["count"] for data in core.notices("CandidateServers")} == {0}
        assert tunnel.new_flows() == []

    @pytest.mark.parametrize("seconds", [7200, -7200])
    def test_the_servers_clock_is_another(self, tunnel: Tunnel, seconds: int) -> None:
        core = tunnel.start_core(faults=({"kind": "wrong_clock", "seconds": seconds},))
        core.wait_for("ServerTimestamp")
        (reported,) = core.notices("ServerTimestamp")
        server = datetime.fromisoformat(str(reported["timestamp"]))
        assert abs((server - datetime.now(UTC)).total_seconds() - seconds) < 60

    def test_the_upstream_proxy_fails(self, tunnel: Tunnel) -> None:
        core = tunnel.start_core(faults=({"kind": "upstream_error"},))
        core.wait_for("UpstreamProxyError")
        assert core.notices("Tunnels") == []
        assert tunnel.new_flows() == []

    def test_establishing_takes_too_long(self, tunnel: Tunnel) -> None:
        core = tunnel.start_core(faults=({"kind": "upstream_error"}, {"kind": "establish_timeout", "after": 0.2}))
        assert core.finish() == 0
        assert len(core.notices("EstablishTunnelTimeout")) == 1
        assert json.loads(core.raw.splitlines()[-1])["noticeType"] == "Exiting"

    def test_the_cores_own_establish_timeout_works_too(self, tunnel: Tunnel) -> None:
        core = tunnel.start_core(faults=({"kind": "no_region"},), EstablishTunnelTimeoutSeconds=1)
        assert core.finish() == 0
        assert core.notices("EstablishTunnelTimeout") == [{"timeout": "1s"}]
