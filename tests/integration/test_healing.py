# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What others remove is back within milliseconds, nothing leaks meanwhile, and the service races with nobody."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

import pytest
from tests.conftest import Figure
from tests.integration.testbed import Testbed, open_testbed

from psiphon_lab import addresses as plan
from psiphon_lab.heal_figures import KINDS, PACE_SECONDS, measure_heal, restore_kernel_rules
from psiphon_lab.namespace import Host
from psiphon_lab.probe import probe_specs
from psiphon_lab.probe_runner import run_probes, unseen_probes
from psiphon_lab.waiting import wait_until
from psiphon_vpn.policy import names

pytestmark = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="needs root and namespaces")]


@pytest.fixture
def testbed(module_testbed: Testbed) -> Testbed:
    module_testbed.machine.wait_state("OPEN")
    module_testbed.machine.wait_for(module_testbed.machine.lease_remains, "the lease")
    return module_testbed


SENDER = """
import socket, sys, time
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    for family, target in ((socket.AF_INET, sys.argv[2]), (socket.AF_INET6, sys.argv[3])):
        for wire in (b"", b"eth0"):
            with socket.socket(family, socket.SOCK_DGRAM) as sock:
                try:
                    if wire:
                        sock.setsockopt(socket.SOL_SOCKET, 25, wire)
                    sock.sendto(b"healing-test", (target, 9))
                except OSError:
                    pass
    time.sleep(0.002)
"""


def start_sender(host: Host, seconds: float) -> subprocess.Popen[bytes]:
    """Send datagrams to the internet, plain and bound to the wire, in both families, every few milliseconds."""
    return host.spawn([sys.executable, "-I", "-c", SENDER, str(seconds), plan.INTERNET4, plan.INTERNET6])


@pytest.mark.requirement("R3", "R7", "R9", "B3", "B4")
def test_whatever_is_taken_away_is_put_back_and_nothing_leaks_meanwhile(testbed: Testbed, figure: Figure) -> None:
    mark = testbed.world.mark()
    sender = start_sender(testbed.world.client, 120)
    took = {}
    try:
        for kind in KINDS:
            begin = time.monotonic()
            took[kind.name], _ = measure_heal(testbed.machine, kind)
            if "rule" in kind.argv:
                restore_kernel_rules(testbed.machine)
            time.sleep(max(0.0, begin + PACE_SECONDS - time.monotonic()))
        assert sender.poll() is None
    finally:
        sender.kill()
        sender.wait()
    # The aim is 20 ms on an idle machine (psiphon_lab/heal_figures.py); this one also sends.
    for name, milliseconds in took.items():
        figure(f"taken away to put back, ms: {name}", milliseconds)
    testbed.assert_no_leak(mark)
    assert b"healing-test" not in b"".join(frame.data for frame in testbed.world.frames_since(mark))


def test_the_sender_of_this_module_is_seen_without_the_lock() -> None:
    with open_testbed(start=False) as bare:
        bare.machine.release_guard()
        bare.world.client.run(["nft", "flush", "ruleset"])
        mark = bare.world.mark()

        def seen() -> int:
            return sum(b"healing-test" in frame.data for frame in bare.world.frames_since(mark))

        sender = start_sender(bare.world.client, 120)
        try:
            wait_until(lambda: seen() >= 4, "datagrams of the sender")
        finally:
            sender.kill()
            sender.wait()


@pytest.mark.requirement("B3")
def test_the_log_says_who_changed_routes_and_rules(testbed: Testbed) -> None:
    """ip(8) with commands on its input keeps running, so it can still be named."""
    for line in (
        "rule del priority 5075",
        f"route del unreachable default table {names.ROUTE_TABLE} metric 4278198272",
    ):
        before = len(testbed.machine.read_log())
        with testbed.world.client.spawn(["ip", "-batch", "-"], stdin=subprocess.PIPE) as child:
            assert child.stdin is not None
            child.stdin.write(line.encode() + b"\n")
            child.stdin.flush()
            said = f"ip (pid {child.pid}) changed the routes of the lock"
            testbed.machine.wait_for(lambda: said in testbed.machine.read_log()[before:], said)  # noqa: B023
            child.stdin.close()
            child.stdin = None
        testbed.machine.wait_state("OPEN")
    before = len(testbed.machine.read_log())
    flush = testbed.world.client.spawn(["nft", "flush", "ruleset"])
    flush.wait(timeout=60)
    said = f"nft (pid {flush.pid}) changed the lock"
    testbed.machine.wait_for(lambda: said in testbed.machine.read_log()[before:], said)


@pytest.mark.requirement("R1", "B3")
def test_a_kernel_setting_that_is_overtaken_is_put_back_with_the_next_renewal(testbed: Testbed) -> None:
    before = len(testbed.machine.read_log())
    testbed.world.client.set_sysctls({"ipv4/conf/all/arp_ignore": 0})

    def back() -> bool:
        return testbed.world.client.get_sysctl("ipv4/conf/all/arp_ignore") == "1"

    testbed.machine.wait_for(back, "the setting")
    said = "somebody changed net.ipv4.conf.all.arp_ignore"
    testbed.machine.wait_for(lambda: said in testbed.machine.read_log()[before:], said)
    testbed.machine.wait_state("OPEN")


FIGHTS = {
    "it flushes the rules": ("nft", "while :; do nft flush ruleset; done"),
    "it deletes our routing rules": (
        "ip",
        "while :; do for p in 5071 5075 5076; do echo rule del priority $p; done; sleep 0.004; done "
        "| ip -force -batch -",
    ),
    "it sets the TUN down": (
        "",
        f"while :; do echo link set {names.TUN_NAME} down; sleep 0.004; done | ip -force -batch -",
    ),
}


@pytest.mark.requirement("R1", "R3", "B3")
@pytest.mark.parametrize("how", FIGHTS)
def test_a_fight_is_noticed_reported_and_sat_out_locked(testbed: Testbed, how: str) -> None:
    who, script = FIGHTS[how]
    machine = testbed.machine
    machine.command("restart")  # forget fights of other tests
    machine.wait_state("OPEN")
    lines = len(machine.read_log().splitlines())
    mark = testbed.world.mark()
    fighter = testbed.world.client.spawn(["timeout", "30", "sh", "-c", script], stderr=subprocess.DEVNULL)
    try:
        status: dict[str, Any] = {}

        def is_reported() -> bool:
            # From one answer of the daemon: a moment later it may look whether the fight goes on.
            status.update(machine.read_status() or {})
            return status.get("reason_code") == "fight"

        machine.wait_for(is_reported, "the reason")
        assert (status["state"], status["locked"]) == ("LOCKED", True)
        machine.wait_for(lambda: (machine.read_status() or {}).get("core_pid") is None, "the core's end")
        assert f"{who} (pid " in status["reason"] or (who != "nft" and "program" in status["reason"])
        assert "stop it" in status["next_step"]
        specs = probe_specs(salt=9000 + list(FIGHTS).index(how), label="root")
        run_probes(testbed.world.client, specs)
        assert len(unseen_probes(specs, testbed.world.frames_since(mark))) == len(specs)
        assert not machine.lease_remains()
        assert fighter.poll() is None, "it fights on"
    finally:
        fighter.terminate()  # timeout(1) ends the shell and what it runs
        fighter.wait(timeout=60)
    ended = time.monotonic()
    machine.wait_state("OPEN")
    machine.wait_for(lambda: testbed.page() == plan.SERVER4, "a page through the tunnel")
    assert time.monotonic() - ended > 1, "the service waited to see whether it goes on"
    testbed.assert_no_leak(mark)
    said = machine.read_log().splitlines()[lines:]
    assert sum("keeps changing the lock" in line for line in said) >= 1
    assert len(said) < 60, "\n".join(said)
