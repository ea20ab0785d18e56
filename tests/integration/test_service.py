# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The real service in the laboratory: what users, faults and other programs do to it, judged by frames outside."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.conftest import Figure
from tests.integration.testbed import Testbed

from psiphon_lab import addresses as plan
from psiphon_lab.addresses import LAN_A
from psiphon_lab.probe import LIMIT
from psiphon_lab.service_adapter.daemon import CAPABILITIES
from psiphon_lab.socks_client import fetch_by_socks

pytestmark = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="needs root and namespaces")]

CAPABILITY_BITS = {"net_bind_service": 10, "net_admin": 12, "net_raw": 13}


@pytest.fixture
def testbed(module_testbed: Testbed) -> Testbed:
    """The module's testbed, open again after whatever the test before did."""
    module_testbed.set_faults()
    module_testbed.machine.write_config()
    if module_testbed.machine.read_status() is None:
        module_testbed.machine.start_daemon()
    module_testbed.machine.command("start")
    module_testbed.machine.command("reload")
    module_testbed.machine.wait_state("OPEN")
    module_testbed.machine.wait_for(module_testbed.machine.lease_remains, "the lease")
    return module_testbed


def _capabilities(pid: int) -> dict[str, int]:
    fields = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    return {name: int(fields[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} | {
        "NoNewPrivs": int(fields["NoNewPrivs"]),
        "Uid": int(fields["Uid"].split()[0]),
    }


@pytest.mark.defect(10, 12)
@pytest.mark.requirement("R8", "B1")
def test_the_daemon_has_exactly_three_capabilities_and_the_core_has_none(testbed: Testbed) -> None:
    three = sum(1 << CAPABILITY_BITS[name] for name in CAPABILITIES)
    daemon = _capabilities(testbed.machine.daemon_pid)
    assert (daemon["CapBnd"], daemon["CapEff"], daemon["Uid"]) == (three, three, testbed.machine.identity.uid)
    status = testbed.machine.wait_state("OPEN")
    core = _capabilities(status["core_pid"])
    assert [core[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")] == [0, 0, 0, 0]
    assert core["NoNewPrivs"] == 1
    assert core["Uid"] == testbed.machine.identity.uid


@pytest.mark.defect(5, 9)
@pytest.mark.requirement("R5", "R9", "R10", "R11", "R18", "R19")
def test_while_open_everything_goes_through_the_tunnel_and_nothing_else_goes_anywhere(testbed: Testbed) -> None:
    testbed.machine.wait_for(lambda: bool((testbed.machine.read_status() or {})["ipv6"]), "IPv6")
    found = testbed.probe()
    assert found["user-tcp-ipv4-internet-plain"].answer == plan.SERVER4
    assert found["user-tcp-ipv6-internet-plain"].answer == plan.SERVER6
    assert found["user-dns-udp-ipv4-lan-resolver-plain"].answer == plan.MARK_TUNNEL
    assert found["user-dns-tcp-ipv4-lan-resolver-plain"].answer == plan.MARK_TUNNEL
    assert not [item.id for item in found.values() if "-via-eth0" in item.id and item.outcome == "answered"]
    assert not [item.id for item in found.values() if item.outcome == "timeout"]


@pytest.mark.defect(5, 7)
@pytest.mark.requirement("R19")
def test_the_socks_proxy_serves_this_machine_while_open_and_nobody_else_ever(testbed: Testbed) -> None:
    assert fetch_by_socks(testbed.world.client, "127.0.0.1", plan.INTERNET4) == plan.SERVER4
    assert fetch_by_socks(testbed.world.neighbour, LAN_A.client4, plan.INTERNET4, seconds=1.5) is None
    testbed.machine.command("stop")
    assert fetch_by_socks(testbed.world.client, "127.0.0.1", plan.INTERNET4) is None


@pytest.mark.defect(1, 6)
@pytest.mark.requirement("R1", "R3", "R17")
def test_stopping_leaves_the_machine_locked_and_the_intent_outlives_the_daemon(testbed: Testbed) -> None:
    testbed.machine.command("stop")
    assert testbed.machine.wait_state("LOCKED")["locked"] is True
    testbed.probe()
    testbed.machine.stop_daemon()
    testbed.probe()
    testbed.machine.start_daemon()
    testbed.machine.wait_for(
        lambda: (testbed.machine.read_status() or {})["reason_code"] == "stopped_by_user", "its log line"
    )
    testbed.probe()
    status = testbed.machine.wait_state("LOCKED")
    assert (status["intent"], status["reason_code"]) == ("stopped", "stopped_by_user")


def test_an_unreadable_intent_means_locked_and_connecting(testbed: Testbed) -> None:
    testbed.machine.stop_daemon()
    (testbed.machine.state_dir / "intent").write_bytes(b"\xff\x00 nonsense")
    testbed.machine.start_daemon()
    assert testbed.machine.wait_state("OPEN")["intent"] == "connected"


@pytest.mark.requirement("B2")
def test_a_daemon_that_hangs_locks_the_machine_and_checks_everything_before_it_opens_again(
    testbed: Testbed, figure: Figure
) -> None:
    before = testbed.machine.wait_state("OPEN")["since"]
    testbed.machine.signal_daemon(signal.SIGSTOP)
    try:
        took = testbed.machine.wait_for(lambda: not testbed.machine.lease_remains(), "the end of the lease")
        figure("the daemon hangs to the end of its lease, s", took)
        testbed.probe()
        assert fetch_by_socks(testbed.world.client, "127.0.0.1", plan.INTERNET4, seconds=1.5) is None
    finally:
        testbed.machine.signal_daemon(signal.SIGCONT)
    testbed.machine.wait_for(testbed.machine.lease_remains, "another lease")
    assert testbed.machine.wait_state("OPEN")["since"] != before
    said = testbed.machine.read_log()
    assert "OPEN -> VERIFYING: lease_expired" in said
    assert "rules_changed" not in said, "nothing was changed"


@pytest.mark.defect(15, 20)
@pytest.mark.requirement("B2", "R2")
def test_a_killed_daemon_takes_its_core_with_it(testbed: Testbed) -> None:
    core = testbed.machine.wait_state("OPEN")["core_pid"]
    testbed.machine.kill_daemon()
    testbed.machine.wait_for(lambda: not Path(f"/proc/{core}").exists(), "the end of the core")


@pytest.mark.defect(1)
@pytest.mark.requirement("R3")
def test_a_bad_configuration_is_named_with_its_line_and_the_machine_stays_locked(testbed: Testbed) -> None:
    testbed.machine.write_config("socks_prot = 1\n")
    with pytest.raises(Exception, match="socks_port"):
        testbed.machine.command("reload")
    status = testbed.machine.wait_state("FAILED")
    assert status["reason_code"] == "bad_config"
    assert status["locked"] is True
    testbed.probe()
    testbed.machine.write_config()
    testbed.machine.command("reload")
    testbed.machine.wait_state("OPEN")


@pytest.mark.parametrize("word", ["start", "restart"])
@pytest.mark.requirement("R3")
def test_start_and_restart_read_the_configuration_too(testbed: Testbed, word: str) -> None:
    testbed.machine.write_config("socks_prot = 1\n")
    with pytest.raises(Exception, match="socks_port"):
        testbed.machine.command(word)
    assert testbed.machine.wait_state("FAILED")["reason_code"] == "bad_config"
    testbed.probe()
    testbed.machine.write_config()
    testbed.machine.command(word)
    testbed.machine.wait_state("OPEN")


def _run_command(testbed: Testbed, *words: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "psiphon_vpn", "--runtime-dir", str(testbed.machine.runtime_dir), *words]
    return subprocess.run(program, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)


@pytest.mark.requirement("R3", "R12")
def test_a_setting_that_is_changed_by_command_counts_at_once_and_opens_nothing(testbed: Testbed) -> None:
    path, core = testbed.machine.config_path, testbed.machine.wait_state("OPEN")["core_pid"]
    before = path.read_text()
    path.write_text(f"# mine\n{before}")
    done = _run_command(testbed, "config", "set", "--file", str(path), "socks_port=2085", "log_level=debug")
    assert done.returncode == 0, done.stderr
    testbed.probe()
    status = testbed.machine.wait_state("OPEN")
    assert status["core_pid"] != core
    assert status["socks"]["port"] == 2085
    assert path.read_text().startswith("# mine\n")
    assert (path.stat().st_uid, path.stat().st_mode & 0o777) == (testbed.machine.identity.uid, 0o600)
    done = _run_command(testbed, "region", "--file", str(path), "--anyway", "canada")
    assert done.returncode == 0, done.stderr
    assert testbed.machine.command("status")["region_wanted"] == "CA"
    done = _run_command(testbed, "config", "set", "--file", str(path), "socks_port", "80")
    assert done.returncode == 78
    assert "from 1024 to 65535" in done.stderr


def _commands() -> dict[str, list[str]]:
    return {
        "nft flush ruleset": ["nft", "flush", "ruleset"],
        "the base table is deleted": ["nft", "delete", "table", "inet", "psiphon_filter"],
        "the egress guard is deleted": ["nft", "delete", "table", "netdev", "psiphon_egress"],
        "an accept rule is put in front": ["nft", "insert", "rule", "inet", "psiphon_filter", "output", "accept"],
        "the policy is changed": ["nft", "chain", "inet", "psiphon_filter", "output", "{ policy accept; }"],
        "the routing rules are flushed": ["ip", "rule", "flush"],
        "the private table is flushed": ["ip", "route", "flush", "table", "20595"],
        "the TUN is deleted": ["ip", "link", "del", "PsiphonTUN"],
        "the TUN is set down": ["ip", "link", "set", "PsiphonTUN", "down"],
        "the TUN loses its address": ["ip", "addr", "flush", "dev", "PsiphonTUN"],
    }


@pytest.mark.defect(8)
@pytest.mark.requirement("B3", "R2", "R9")
@pytest.mark.parametrize("what", _commands())
def test_what_others_take_away_is_put_back_without_a_leaked_frame(testbed: Testbed, what: str) -> None:
    # Together with earlier cases this might count as a fight; a restart forgets them.
    testbed.machine.command("restart")
    testbed.machine.wait_state("OPEN")
    testbed.machine.wait_for(testbed.machine.lease_remains, "the lease")
    mark = testbed.world.mark()
    testbed.world.client.run(_commands()[what])
    if what == "the routing rules are flushed":
        # `ip rule flush` also removes the kernel's own rules, except `local`.
        for table, priority in (("main", "32766"), ("default", "32767")):
            for family in ("-4", "-6") if table == "main" else ("-4",):
                testbed.world.client.run(
                    ["ip", family, "rule", "add", "lookup", table, "priority", priority], check=False
                )
    testbed.probe()

    def healed() -> bool:
        return (
            (testbed.machine.read_status() or {}).get("state") == "OPEN"
            and testbed.machine.lease_remains()
            and testbed.page() == plan.SERVER4
        )

    testbed.machine.wait_for(healed, f"an open tunnel after: {what}")
    testbed.assert_no_leak(mark)


@pytest.mark.defect(2)
@pytest.mark.requirement("B3")
def test_other_programs_tables_are_left_alone_and_do_not_disturb(testbed: Testbed) -> None:
    testbed.machine.wait_state("OPEN")
    ends = testbed.watch_ends()
    other = "table inet other {\n\tchain c {\n\t\ttype filter hook input priority 5; policy accept;\n\t}\n}\n"
    testbed.world.client.run(["nft", "-f", "-"], input=other)
    loaded = testbed.world.client.run(["nft", "list", "table", "inet", "other"]).stdout
    testbed.let_it_renew()
    testbed.machine.wait_state("OPEN")
    assert ends() == []
    testbed.machine.command("restart")
    testbed.machine.wait_state("OPEN")
    assert testbed.world.client.run(["nft", "list", "table", "inet", "other"]).stdout == loaded
    testbed.world.client.run(["nft", "delete", "table", "inet", "other"])


@pytest.mark.requirement("B4")
def test_raw_frames_are_dropped_while_open_and_were_seen_without_the_guard(testbed: Testbed) -> None:
    payload = b"raw-frame-of-root-%d" % time.monotonic_ns()
    frame = bytes.fromhex("02ffffffffff020000000001") + b"\x08\x00" + b"E\x00\x00\x30" + bytes(16) + payload

    def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind(("eth0", 0))
            # As an IP packet, and disguised as ARP.
            for protocol in (0x0800, 0x0806):
                try:
                    raw.sendto(frame, ("eth0", protocol, 0, 0, b"\x02\xff\xff\xff\xff\xff"))
                except OSError:
                    continue

    mark = testbed.world.mark()
    testbed.world.client.call(send)
    assert not [found for found in testbed.world.frames_since(mark) if payload in found.data]
    testbed.machine.kill_daemon()
    testbed.world.client.run(["nft", "delete", "table", "netdev", "psiphon_egress"])
    mark = testbed.world.mark()
    testbed.world.client.call(send)
    assert not [found for found in testbed.world.frames_since(mark) if payload in found.data], "the frame guard alone"
    testbed.machine.release_guard()
    mark = testbed.world.mark()
    testbed.world.client.call(send)
    if testbed.world.client.run(["tc", "qdisc", "del", "dev", "eth0", "clsact"], check=False).returncode == 0:
        seen = [found for found in testbed.world.frames_since(mark) if payload in found.data]
        assert not seen, "the filter at the card's traffic control, which requires the guards' mark"
    mark = testbed.world.mark()
    testbed.world.client.call(send)
    testbed.machine.hold_guard()
    assert [found for found in testbed.world.frames_since(mark) if payload in found.data], "the positive control"


@pytest.mark.defect(7)
@pytest.mark.requirement("R19")
def test_a_container_goes_through_the_tunnel_or_nowhere(testbed: Testbed) -> None:
    script = (
        "import json,sys,urllib.request as u\n"
        "try: print(json.load(u.urlopen(sys.argv[1], timeout=float(sys.argv[2])))['address'])\n"
        "except OSError as e: print('no:', e)"
    )

    def fetch(url: str, seconds: float = 10) -> str:
        return testbed.world.container.run([sys.executable, "-c", script, url, str(seconds)]).stdout.strip()

    mark = testbed.world.mark()
    assert fetch(f"http://{plan.INTERNET4}/") == plan.SERVER4
    testbed.machine.wait_for(lambda: fetch(f"http://[{plan.INTERNET6}]/") == plan.SERVER6, "IPv6 of the container")
    testbed.machine.command("stop")
    assert fetch(f"http://{plan.INTERNET4}/", seconds=2).startswith("no:")
    assert fetch(f"http://[{plan.INTERNET6}]/", seconds=2).startswith("no:")
    testbed.assert_no_leak(mark)


@pytest.mark.defect(7)
@pytest.mark.requirement("R19")
def test_a_host_of_the_lan_cannot_use_this_machine_as_a_router(testbed: Testbed) -> None:
    testbed.world.neighbour.run(["ip", "route", "add", f"{plan.INTERNET4}/32", "via", LAN_A.client4])
    try:
        mark = testbed.world.mark()
        assert fetch_by_socks(testbed.world.neighbour, plan.INTERNET4, plan.INTERNET4, seconds=1.5) is None
        testbed.assert_no_leak(mark)
    finally:
        testbed.world.neighbour.run(["ip", "route", "del", f"{plan.INTERNET4}/32"])


@pytest.mark.defect(17)
def test_no_address_and_no_secret_is_ever_logged(testbed: Testbed) -> None:
    testbed.machine.command("restart")
    testbed.machine.wait_state("OPEN")
    log = testbed.machine.read_log()
    secrets = [plan.SERVER4, plan.SERVER6, plan.INTERNET4, LAN_A.client4, LAN_A.router4, testbed.server.entry[:40]]
    assert [secret for secret in secrets if secret in log] == []
    assert "OPEN" in log


@pytest.mark.defect(18)
@pytest.mark.requirement("R2", "B3")
def test_without_a_daemon_the_status_is_the_kernels_own_word(testbed: Testbed) -> None:
    testbed.machine.kill_daemon()
    argv = [sys.executable, "-m", "psiphon_vpn", "--runtime-dir", str(testbed.machine.runtime_dir), "status", "--json"]
    reported = testbed.world.client.run(argv, check=False)
    assert reported.returncode == 3
    assert json.loads(reported.stdout)["locked"] is True
    testbed.world.client.run(["nft", "flush", "ruleset"])
    assert json.loads(testbed.world.client.run(argv, check=False).stdout)["locked"] is True, "the wire guard alone"
    testbed.probe()
    testbed.machine.release_guard()
    try:
        assert json.loads(testbed.world.client.run(argv, check=False).stdout)["locked"] is False
        mark = testbed.world.mark()
        assert testbed.page(limit=LIMIT) in {"unreachable", "timeout"}, "the routing wall alone"
        testbed.assert_no_leak(mark)
    finally:
        testbed.machine.boot_lock()
        testbed.machine.hold_guard()


def test_an_ordinary_user_does_not_read_what_cannot_be_seen(testbed: Testbed) -> None:
    testbed.machine.kill_daemon()
    argv = [sys.executable, "-m", "psiphon_vpn", "--runtime-dir", str(testbed.machine.runtime_dir), "status", "--json"]
    reported = testbed.world.client.run(argv, check=False, uid=65534, gid=65534)
    assert (reported.returncode, reported.stdout) == (77, "")
    assert len(reported.stderr.splitlines()) == 1


@pytest.mark.requirement("R24")
def test_the_daemon_stays_small(testbed: Testbed) -> None:
    assert testbed.machine.read_resident_kib() < 48 * 1024
