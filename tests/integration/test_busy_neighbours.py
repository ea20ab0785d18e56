# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Other programs that commit to the ruleset again and again, and the service's own commits in a pid namespace."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.integration.testbed import Testbed, open_testbed

from psiphon_lab import addresses as plan
from psiphon_vpn.linux.nfnetlink import Element, NftSocket
from psiphon_vpn.policy import names

pytestmark = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="needs root and namespaces")]

NEIGHBOUR = Path(__file__).with_name("busy_neighbour.py")
SOURCES = Path(__file__).parents[2] / "src"
MOVE = " -> "
FLUSHES = 3
RENEWALS_SECONDS = 7.0
"""Longer than a lease runs: it was renewed more than once."""


@pytest.fixture
def testbed(reopened_testbed: Testbed) -> Testbed:
    nft(reopened_testbed, "table inet f2b\ndelete table inet f2b\ntable inet f2b { set bans { type ipv4_addr; }; }")
    return reopened_testbed


def nft(testbed: Testbed, text: str) -> None:
    testbed.world.client.run(["nft", "-f", "-"], input=text)


def begin_churn(testbed: Testbed, rate: int, count: int, *what: str) -> subprocess.Popen[bytes]:
    """Start the busy neighbour: `count` elements, `rate` per second, or what its further arguments ask for."""
    return testbed.world.client.spawn(
        [sys.executable, NEIGHBOUR, str(rate), str(count), *what],
        env={"PYTHONPATH": str(SOURCES), "PATH": os.environ["PATH"]},
        stdout=subprocess.PIPE,
    )


def read_cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.requirement("B3", "R1")
@pytest.mark.parametrize(("rate", "count"), [(10, 150), (50, 750), (1000, 12_000)])
def test_elements_in_another_programs_set_change_nothing_and_a_rule_in_ours_still_closes_at_once(
    testbed: Testbed, rate: int, count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = testbed.machine
    before, log = machine.read_status(), machine.read_log()
    assert before is not None
    spent = read_cpu_seconds(machine.daemon_pid)
    churn = begin_churn(testbed, rate, count)
    held = 0
    while churn.poll() is None:
        # Not with nft(8): it starts again whenever somebody commits while it lists.
        assert testbed.world.client.call(holds_lease), machine.read_log()[len(log) :]
        held += 1
        time.sleep(0.2)
    assert churn.stdout is not None
    made, seconds = churn.stdout.read().split()
    spent = read_cpu_seconds(machine.daemon_pid) - spent
    with capsys.disabled():
        share = 100 * spent / float(seconds)
        sys.stdout.write(f"\n{float(made) / float(seconds):.0f} commits a second: {share:.1f} % of a processor\n")
    after = machine.read_status()
    assert after is not None
    assert (after["state"], after["since"]) == ("OPEN", before["since"])
    assert MOVE not in machine.read_log()[len(log) :]
    assert testbed.page() == plan.SERVER4

    churn = begin_churn(testbed, rate, count)
    nft(testbed, "add rule inet psiphon_filter output accept")
    testbed.machine.wait_for(lambda: MOVE in machine.read_log()[len(log) :], "the closing")
    assert churn.poll() is None, "the positive control came while the neighbour was busy"
    testbed.machine.wait_for(lambda: not has_stray_rule(testbed), "the rule to go")
    churn.kill()
    churn.wait()
    machine.wait_state("OPEN", seconds=60)


@pytest.mark.requirement("B3", "R1")
@pytest.mark.parametrize(("rate", "what"), [(50, ()), (300, ()), (20, ("rules",))], ids=["50", "300", "rules"])
def test_it_opens_while_another_program_goes_on_and_on(testbed: Testbed, rate: int, what: tuple[str, ...]) -> None:
    """After a restart, another program's new table, or a new daemon that knows nothing, everything is read back."""
    machine = testbed.machine
    nft(testbed, "table inet f2b { chain jail { }; chain input { type filter hook input priority 5; jump jail; }; }")
    churn = begin_churn(testbed, rate, rate * 300, *what)
    try:
        machine.command("restart")
        machine.wait_state("OPEN")
        lines = len(machine.read_log().splitlines())
        nft(testbed, "table inet f2b2 { set bans { type ipv4_addr; flags timeout; }; }")
        machine.wait_for(lambda: testbed.page() == plan.SERVER4, "a page")
        machine.stop_daemon()
        machine.start_daemon()
        machine.wait_state("OPEN")
        ends = testbed.watch_ends()
        assert testbed.page() == plan.SERVER4
        testbed.let_it_renew(3)
        assert ends() == [], "it was closed meanwhile"
        assert len(machine.read_log().splitlines()) - lines < 30
        assert churn.poll() is None, "it was over before"
    finally:
        churn.kill()
        churn.wait()
        nft(testbed, "table inet f2b2\ndelete table inet f2b2")


def holds_lease() -> bool:
    """Whether the kernel of this namespace holds the lease; asks again if somebody commits meanwhile."""
    with contextlib.closing(NftSocket()) as netlink:
        for _ in range(50):
            with contextlib.suppress(InterruptedError):
                return netlink.holds(Element(names.BASE_TABLE, names.LEASE_SET, names.TUN_NAME))
    return False


def has_stray_rule(testbed: Testbed) -> bool:
    """Whether the base table's output chain ends with a bare accept."""
    listing = testbed.world.client.run(["nft", "list", "chain", "inet", "psiphon_filter", "output"], check=False)
    return listing.returncode != 0 or any(line.strip() == "accept" for line in listing.stdout.splitlines())


@pytest.mark.requirement("B3")
@pytest.mark.parametrize(
    "text",
    [
        "table inet f2b { chain c { type filter hook output priority 5; accept; }; }",
        "table netdev f2b { chain c { type filter hook ingress device lo priority 0; }; }",
    ],
    ids=["hook", "device"],
)
def test_a_hook_of_another_program_is_read_back_and_not_fought(testbed: Testbed, text: str) -> None:
    """As always, the service's tables are read back and found right."""
    log = testbed.machine.read_log()
    nft(testbed, text)
    testbed.machine.wait_for(lambda: testbed.page() == plan.SERVER4, "a page, at once or after a look")
    assert "fight" not in testbed.machine.read_log()[len(log) :]
    for family in ("inet", "netdev"):
        nft(testbed, f"table {family} f2b\ndelete table {family} f2b")


@pytest.mark.requirement("B3", "R19")
@pytest.mark.parametrize("hidden", [False, True], ids=["plain", "hidepid"])
def test_in_a_pid_namespace_our_own_commits_are_ours_and_a_strangers_is_named_honestly(hidden: bool) -> None:
    with open_testbed(start=False) as testbed:
        client, machine = testbed.machine.client, testbed.machine
        command = client.command
        inner = 'mount -t proc -o %s proc /proc && exec "$@"' % ("hidepid=2" if hidden else "nosuid")

        def contained(argv: Any, **options: Any) -> list[str]:
            full = command(argv, **options)
            if "psiphon_vpn.service" not in full:
                return full
            # First into the host's namespaces, then into a process namespace with its own /proc.
            at = full.index("setpriv")
            unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", inner, "sh"]
            return [*full[:at], *unshare, *full[at:]]

        client.command = contained  # type: ignore[method-assign]
        machine.start_daemon()
        client.command = command  # type: ignore[method-assign]
        machine.wait_state("OPEN")
        for _ in range(FLUSHES):
            seen = len(machine.read_log())
            nft(testbed, "flush ruleset")
            machine.wait_for(lambda at=seen: MOVE in machine.read_log()[at:], "the closing")  # type: ignore[misc]
            machine.wait_state("OPEN")
            machine.wait_for(machine.lease_remains, "the lease")
        machine.command("restart")
        machine.wait_state("OPEN")
        log = machine.read_log()
        assert "keeps changing the lock" not in log
        assert log.count("changed the lock; it was put back") == FLUSHES, "its own commits were taken for a stranger's"
        assert log.count("on the host) changed the lock; it was put back") == FLUSHES
        machine.kill_daemon()  # unshare(1) ignores SIGTERM while its child runs: a minute would be waited for it
