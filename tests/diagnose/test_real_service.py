# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The checks on a machine with the real service, as it goes through its states."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.diagnose.scene import find_troubles, write
from tests.integration.testbed import Testbed, open_testbed

from psiphon_lab.addresses import LAN_A
from psiphon_lab.machine import LAB_UID
from psiphon_vpn.accounts import User
from psiphon_vpn.diagnose.engine import run_checks
from psiphon_vpn.diagnose.facts import Facts
from psiphon_vpn.diagnose.model import Group, Result, Verdict, find_exit_code
from psiphon_vpn.diagnose.registry import CHECKS
from psiphon_vpn.diagnose.system import RealSystem
from psiphon_vpn.system.layout import Layout

pytestmark = [pytest.mark.lab, pytest.mark.requirement("R15")]

LIVING = (Group.LOCK, Group.ROUTES, Group.TUNNEL, Group.DNS)


class LabSystem(RealSystem):
    """The real system, with the laboratory's psiphon-user, who has no entry in the machine's list of users."""

    def find_user(self, name: str) -> User | None:
        return User(name=name, uid=LAB_UID, gid=LAB_UID, login="/usr/sbin/nologin")

    def find_group(self, name: str) -> int | None:
        return LAB_UID


@dataclass(frozen=True)
class LabLayout(Layout):
    """The laboratory's paths in place of an installation's."""

    machine: Path = Path("/")

    @property
    def config(self) -> Path:
        return self.machine / "config.toml"

    @property
    def state_dir(self) -> Path:
        return self.machine / "state"


def diagnose(testbed: Testbed) -> dict[str, Result]:
    machine = testbed.machine
    root = testbed.world.directory / "root"
    (root / "etc").mkdir(parents=True, exist_ok=True)
    (root / "etc" / "resolv.conf").write_text("nameserver 192.0.2.1\n")
    layout = LabLayout(root=root, machine=machine.config_path.parent)

    def look() -> tuple[Result, ...]:
        return run_checks(CHECKS, lambda: Facts(LabSystem(), layout, runtime_dir=machine.runtime_dir))

    return {result.check.id: result for result in testbed.world.client.call(look)}


def tell(results: dict[str, Result]) -> dict[str, str]:
    """What is wrong, apart from the files of an installation."""
    wrong = find_troubles(results)
    return {name: result.reason for name, result in results.items() if name in wrong and result.check.group in LIVING}


@pytest.fixture(scope="module")
def testbed() -> Iterator[Testbed]:
    with open_testbed() as made:
        yield made


def test_an_open_machine_is_well(testbed: Testbed) -> None:
    testbed.machine.wait_state("OPEN")
    results = diagnose(testbed)
    assert tell(results) == {}
    assert results["dns.answers"].verdict is Verdict.OK
    assert results["lock.base-text"].reason == "as for OPEN"
    assert sum(result.seconds for result in results.values()) < 30


def test_looking_does_not_disturb_the_service(testbed: Testbed) -> None:
    before = testbed.machine.wait_state("OPEN")["since"]
    commits = testbed.machine.read_log()
    for _ in range(2):
        diagnose(testbed)
    assert testbed.machine.wait_state("OPEN")["since"] == before
    assert testbed.machine.read_log() == commits


def test_a_stopped_tunnel_is_well(testbed: Testbed) -> None:
    testbed.machine.command("stop")
    testbed.machine.wait_state("LOCKED")
    results = diagnose(testbed)
    assert tell(results) == {}
    assert results["lock.base-text"].reason == "as for LOCKED"
    testbed.machine.command("start")
    testbed.machine.wait_state("OPEN")


def test_a_killed_daemon_is_reported_and_the_machine_is_locked(testbed: Testbed) -> None:
    testbed.machine.kill_daemon()
    testbed.machine.wait_for(lambda: not testbed.machine.lease_remains(), "the end of the lease")
    results = diagnose(testbed)
    assert set(tell(results)) == {"tunnel.daemon"}
    assert find_exit_code(tuple(results.values())) == 1
    testbed.machine.start_daemon()
    testbed.machine.wait_state("OPEN")


def test_a_machine_after_boot_without_a_daemon_is_locked() -> None:
    with open_testbed(start=False) as testbed:
        results = diagnose(testbed)
        assert results["lock.base-text"].reason == "as for boot"
        assert find_exit_code(tuple(results.values())) == 1


def test_a_machine_on_which_nothing_is_installed_is_open_and_says_so() -> None:
    from tests.integration.kernel import open_kernel

    with open_kernel() as kernel:
        layout = Layout(root=Path("/nonexistent"))
        look = lambda: run_checks(CHECKS, lambda: Facts(RealSystem(), layout))  # noqa: E731
        results = {result.check.id: result for result in kernel.host.call(look)}
    assert results["lock.samples"].open
    assert results["files.installed"].verdict is Verdict.FAILED
    assert not [result.reason for result in results.values() if "fault in check" in result.reason]
    assert find_exit_code(tuple(results.values())) == 2


def test_the_command_itself_tells_a_locked_machine_with_live_probes_and_a_report(
    testbed: Testbed, tmp_path: Path
) -> None:
    testbed.machine.wait_state("OPEN")
    report, root = tmp_path / "report.txt", tmp_path / "root"
    write(root / "etc/psiphon-vpn/config.toml", testbed.machine.config_path.read_bytes(), mode=0o600, uid=LAB_UID)
    (root / "dev/net").mkdir(parents=True)
    os.mknod(root / "dev/net/tun", stat.S_IFCHR | 0o666, os.makedev(10, 200))
    argv = [sys.executable, "-m", "psiphon_vpn", "--runtime-dir", str(testbed.machine.runtime_dir), "diagnose"]
    argv += ["--json", "--live", "--report", str(report), "--root", str(root)]
    done = testbed.world.client.run(argv, check=False, timeout=60)
    document = json.loads(done.stdout)
    # 1 and not 0: in the laboratory the service runs without being installed.
    assert (done.returncode, document["exit_code"], document["open"]) == (1, 1, False)
    assert [one["id"] for one in document["checks"] if one["verdict"] in {"failed", "unknown"}] == ["files.installed"]
    assert len(document["checks"]) == len(CHECKS) + 1
    assert document["live"]["wires"] == [{"interface": "eth0", "seen": [], "control": True, "lost": 0}]
    text = report.read_text()
    assert "table inet psiphon_filter" in text
    assert LAN_A.router4 not in text
    assert LAN_A.mac not in text
