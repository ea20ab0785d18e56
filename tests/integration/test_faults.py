# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The core in every kind of trouble (A23), and a machine that lacks something: locked, with a reason, and back."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import Figure
from tests.integration.testbed import Testbed, open_testbed
from tests.lock_reading import read_lock

from psiphon_lab import addresses as plan
from psiphon_lab.addresses import LAN_A, LAN_B
from psiphon_lab.commit_watch import CommitWatch
from psiphon_lab.machine import Machine
from psiphon_lab.namespace import LabError
from psiphon_lab.probe import LIMIT, probe_specs
from psiphon_lab.probe_runner import run_probes, unseen_probes
from psiphon_lab.waiting import wait_until
from psiphon_lab.world import World

pytestmark = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="needs root and namespaces")]

NEVER_OPENS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "it exits with code 0": ({"kind": "exit", "code": 0}, {"core_exited"}),
    "it exits with code 1": ({"kind": "exit", "code": 1}, {"core_exited"}),
    "it exits with code 2": ({"kind": "exit", "code": 2}, {"core_exited"}),
    "it dies by SIGKILL": ({"kind": "signal", "number": 9}, {"core_exited"}),
    "it hangs": ({"kind": "hang"}, {"connecting", "restarting"}),
    "it says nothing": ({"kind": "silent"}, {"connecting", "restarting"}),
    "it claims a tunnel that it does not have": ({"kind": "liar"}, {"tunnel_up", "tunnel_silent"}),
    "its tunnel carries nothing": ({"kind": "blackhole"}, {"tunnel_up", "tunnel_silent"}),
    "its packet channel is not opened": ({"kind": "no_packet_channel"}, {"tunnel_up", "tunnel_silent"}),
    "its data store is locked": ({"kind": "datastore"}, {"datastore"}),
    "its data store cannot be opened": ({"kind": "datastore_broken"}, {"datastore_broken"}),
    "its data store makes it crash": ({"kind": "datastore_crash"}, {"datastore_broken"}),
    "its servers do not fit its options": ({"kind": "no_region"}, {"protocols"}),
    "it knows no server": ({"kind": "empty_list"}, {"no_list"}),
    "its upstream proxy is dead": ({"kind": "upstream_error"}, {"upstream_proxy"}),
    "it gives up": ({"kind": "establish_timeout"}, {"core_exited"}),
}
LOOKS = 20
"""So often it is asked and looked at the kernel, at least."""
WITHOUT_TARGET = {"no_region", "empty_list"}
"""A core that has a target needs no list."""
ENDS_BY_ITSELF = {"core_exited", "datastore", "datastore_broken", "tunnel_silent"}
OPENS_ALL_THE_SAME: dict[str, dict[str, Any]] = {
    "its port is taken between look and start": {"kind": "port_in_use"},
    "it floods its standard error": {"kind": "flood"},
    "it writes junk": {"kind": "junk"},
    "it writes a line of 8 MiB": {"kind": "oversize"},
}


@pytest.fixture
def testbed(module_testbed: Testbed) -> Testbed:
    return module_testbed


@pytest.mark.defect(1, 16)
@pytest.mark.requirement("R1", "R17")
@pytest.mark.parametrize("what", NEVER_OPENS)
def test_a_core_in_trouble_never_opens_and_the_service_comes_back_by_itself(testbed: Testbed, what: str) -> None:
    fault, reasons = NEVER_OPENS[what]
    mark = testbed.world.mark()
    testbed.set_faults(fault)
    if fault["kind"] in WITHOUT_TARGET:
        testbed.machine.write_config(target=False)
        testbed.machine.command("reload")
    else:
        testbed.machine.command("restart")
    seen: list[str] = []

    def look() -> bool:
        status = testbed.machine.read_status()
        assert status is not None
        assert status["state"] != "OPEN"
        assert status["locked"] is True
        assert not testbed.machine.lease_remains()
        seen.append(status["reason_code"])
        return bool(reasons.intersection(seen)) and len(seen) >= LOOKS

    testbed.machine.wait_for(look, f"one of {sorted(reasons)}")
    testbed.set_faults()
    # A pending retry comes by itself; a core that hangs or waits needs the user's restart.
    if fault["kind"] in WITHOUT_TARGET:
        testbed.machine.write_config()
        testbed.machine.command("reload")
    elif not ENDS_BY_ITSELF.intersection(seen):
        testbed.machine.command("restart")
    testbed.machine.wait_state("OPEN")
    testbed.assert_no_leak(mark)


@pytest.mark.defect(16)
@pytest.mark.parametrize("what", OPENS_ALL_THE_SAME)
def test_a_noisy_core_is_drained_and_works(testbed: Testbed, what: str) -> None:
    testbed.set_faults(OPENS_ALL_THE_SAME[what])
    testbed.machine.command("restart")
    testbed.machine.wait_state("OPEN")
    assert testbed.page() == plan.SERVER4
    assert testbed.machine.read_resident_kib() < 64 * 1024
    testbed.set_faults()


@pytest.mark.requirement("R6")
def test_a_tunnel_that_flaps_is_closed_each_time(testbed: Testbed) -> None:
    mark = testbed.world.mark()
    testbed.set_faults({"kind": "flap", "period": 0.3})
    before = len(testbed.machine.read_log())
    testbed.machine.command("restart")
    testbed.machine.wait_for(lambda: "tunnel_lost" in testbed.machine.read_log()[before:], "the closing")
    testbed.set_faults()
    testbed.machine.command("restart")
    testbed.machine.wait_state("OPEN")
    testbed.assert_no_leak(mark)


@pytest.mark.requirement("R1")
def test_a_server_that_goes_away_closes_at_once_and_its_return_opens(testbed: Testbed) -> None:
    testbed.machine.command("restart")
    testbed.machine.wait_state("OPEN")
    mark = testbed.world.mark()
    testbed.server.stop()
    try:
        status = testbed.machine.wait_state("CONNECTING")
        assert status["reason_code"] == "tunnel_lost"
        assert not testbed.machine.lease_remains()
    finally:
        frames = testbed.world.frames_since(mark)
        testbed.server.start()
    assert frames
    testbed.machine.wait_state("OPEN")
    assert testbed.page() == plan.SERVER4


@pytest.mark.defect(1)
@pytest.mark.requirement("R1", "R2")
def test_without_a_tun_device_the_machine_is_locked_and_says_why() -> None:
    with open_testbed(start=False) as testbed:
        testbed.world.client.run(["rm", "/dev/net/tun"])
        testbed.machine.start_daemon()
        testbed.machine.wait_for(
            lambda: (testbed.machine.read_status() or {}).get("reason_code") == "tun_failed", "the reason"
        )
        status = testbed.machine.read_status()
        assert status is not None
        assert (status["state"], status["locked"], status["next_step"] is None) == ("LOCKED", True, False)
        assert status["missing_features"] == ["tun"]
        testbed.probe()
        testbed.world.client.run(["mknod", "-m", "666", "/dev/net/tun", "c", "10", "200"])
        testbed.machine.wait_state("OPEN")


@pytest.mark.defect(3)
@pytest.mark.requirement("R1", "R2")
def test_without_nftables_there_is_a_clear_error_and_the_routes_are_blocked_at_least() -> None:
    with World() as world:
        program = shutil.which("nft")
        assert program is not None
        world.client.run(["mount", "--bind", "/bin/false", program])
        with Machine(world, core=Path("/bin/false"), entry=str) as machine:
            with pytest.raises(LabError):
                machine.start_daemon()
            said = machine.read_log()
            assert "nftables does not work on this machine" in said
            assert len(said.strip().splitlines()) == 1
            mark = world.mark()
            specs = tuple(spec for spec in probe_specs(salt=1) if not spec.interface)
            found = run_probes(world.client, specs)
            assert {item.outcome for item in found.values()} == {"unreachable"}
            assert len(unseen_probes(specs, world.frames_since(mark))) == len(specs)


@pytest.mark.defect(1)
@pytest.mark.requirement("R1", "R2")
def test_without_a_usable_runtime_directory_the_machine_is_locked_all_the_same() -> None:
    """Neither lock file nor control socket can be made; the firewall is loaded before both."""
    with open_testbed(start=False) as testbed:
        testbed.machine.release_guard()
        testbed.world.client.run(["nft", "flush", "ruleset"])
        assert testbed.page() == LAN_A.client4, "the positive control"
        os.chown(testbed.machine.runtime_dir, 0, 0)
        with pytest.raises(LabError):
            testbed.machine.start_daemon()
        assert "The control socket" in testbed.machine.read_log()
        assert "failed: CancelledError" not in testbed.machine.read_log(), "it ends in order"
        assert read_lock(testbed.world.client).locked is True
        testbed.probe()


@pytest.mark.requirement("R1", "R2")
def test_a_daemon_that_cannot_even_look_at_the_links_has_locked_and_says_so() -> None:
    with open_testbed(start=False) as testbed:
        testbed.machine.release_guard()
        testbed.world.client.run(["nft", "flush", "ruleset"])
        assert testbed.page() == LAN_A.client4, "the positive control"
        testbed.machine.program = [str(Path(__file__).with_name("blind_daemon.py"))]
        testbed.machine.start_daemon()
        assert read_lock(testbed.world.client).locked is True
        testbed.machine.wait_for(
            lambda: (testbed.machine.read_status() or {}).get("reason_code") == "part_failed",
            "its own message",
        )
        assert "blind" in testbed.machine.read_log()
        assert read_lock(testbed.world.client).locked is True
        testbed.probe()


@pytest.mark.requirement("R3")
def test_a_bad_configuration_at_start_never_starts_a_core() -> None:
    with open_testbed(start=False) as testbed:
        testbed.machine.write_config("nonsense")
        testbed.machine.start_daemon()
        status = testbed.machine.wait_state("FAILED")
        assert (status["core_pid"], status["locked"]) == (None, True)
        assert "CONNECTING" not in testbed.machine.read_log()


@pytest.mark.requirement("R6")
def test_a_link_that_is_lost_right_after_another_change_is_closed_by_the_daemon(figure: Figure) -> None:
    with open_testbed() as testbed:
        testbed.machine.wait_for(testbed.machine.lease_remains, "the lease")
        took = []
        for here, there in ((LAN_A, LAN_B), (LAN_B, LAN_A), (LAN_A, LAN_B)):
            testbed.world.client.run(["ip", "route", "add", "unreachable", "198.18.0.0/15", "metric", "77"])
            testbed.world.client.run(["ip", "route", "del", "unreachable", "198.18.0.0/15", "metric", "77"])
            with CommitWatch(testbed.world.client) as commits:
                testbed.world.disconnect_uplink(here)
                wait_until(lambda: commits.first_loss() is not None, "the kernel's report")
                lost = commits.first_loss()
                assert lost is not None
                pid = testbed.machine.daemon_pid
                wait_until(lambda: commits.closed_after(lost, pid=pid) is not None, "the closing")  # noqa: B023
                assert not testbed.machine.lease_remains()
                closed = commits.closed_after(lost, pid=pid)
            assert closed is not None
            took.append(closed - lost)
            testbed.world.connect_uplink(there)
            testbed.machine.wait_state("OPEN")
            testbed.machine.wait_for(testbed.machine.lease_remains, "the lease")
        figure("a carrier lost to the closing, ms", sorted(took)[1] * 1000)


@pytest.mark.requirement("R2", "R7", "R9")
@pytest.mark.parametrize("layer", ["base", "guard", "routing"])
def test_each_layer_alone_stops_every_plain_probe(layer: str) -> None:
    with open_testbed() as testbed:
        testbed.machine.kill_daemon()
        client = testbed.world.client
        if layer != "guard":
            testbed.machine.release_guard()
        client.run(["nft", "flush", "ruleset"])
        if layer == "base":
            testbed.machine.boot_lock()
        if layer != "routing":
            for family in ("-4", "-6"):
                for priority in range(5070, 5077):
                    client.run(["ip", family, "rule", "del", "priority", str(priority)], check=False)
            found = testbed.probe()
            assert not [item.id for item in found.values() if item.outcome == "answered"]
        else:
            # A socket bound to an interface bypasses routing by design, so this tries only unbound ones.
            mark = testbed.world.mark()
            assert {testbed.page(4, limit=LIMIT), testbed.page(6, limit=LIMIT)} <= {"unreachable", "timeout"}
            testbed.assert_no_leak(mark)


@pytest.mark.defect(6)
def test_the_lock_stands_from_before_the_first_packet_and_without_it_probes_are_seen() -> None:
    with open_testbed(start=False) as testbed:
        testbed.probe()
        testbed.machine.release_guard()
        testbed.world.client.run(["nft", "flush", "ruleset"])
        mark = testbed.world.mark()
        assert testbed.page() == plan.LAN_A.client4
        with pytest.raises(AssertionError):
            testbed.assert_no_leak(mark)


@pytest.mark.defect(4)
@pytest.mark.requirement("R1")
def test_a_flow_that_was_open_before_the_lock_is_cut() -> None:
    import socket

    with open_testbed(start=False) as testbed:
        client = testbed.world.client
        testbed.machine.release_guard()
        client.run(["nft", "flush", "ruleset"])

        def connect(kind: socket.SocketKind) -> socket.socket:
            made = socket.socket(socket.AF_INET, kind)
            made.settimeout(30)
            made.connect((plan.INTERNET4, 7))
            made.send(b"before")
            assert made.recv(100) == b"before"
            return made

        stream = client.call(lambda: connect(socket.SOCK_STREAM))
        datagrams = client.call(lambda: connect(socket.SOCK_DGRAM))
        with stream, datagrams:
            testbed.machine.boot_lock()
            testbed.machine.hold_guard()
            mark = testbed.world.mark()
            for _ in range(3):
                for flow in (stream, datagrams):
                    try:
                        flow.send(b"after the lock")
                    except OSError:
                        continue
            testbed.machine.start_daemon()
            testbed.machine.wait_state("OPEN")
            for flow in (stream, datagrams):
                try:
                    flow.send(b"after the opening")
                except OSError:
                    continue
            assert testbed.page() == plan.SERVER4, "this frame comes after them"
            testbed.assert_no_leak(mark)
