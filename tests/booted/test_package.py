# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Packages on booted systems: they change nothing before the set-up; upgrades, removal, a half-done set-up."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.booted.conftest import note, scenario, start_session
from tests.booted.open_machine import assert_open_as_before, read_kernel
from tests.booted.snapshot import list_changes, read_disk

from psiphon_lab.booted.clone import ROOT, copy_clone
from psiphon_lab.booted.installation import CORE
from psiphon_lab.booted.session import Session
from psiphon_vpn.system.layout import KILLSWITCH_FAILED_UNIT, KILLSWITCH_UNIT, UNITS, Layout

# The reverse of test_service.py, so that every system is tried with every network manager.
VARIANTS = [("debian12", "systemd-networkd"), ("debian13", "NetworkManager")]
FORMER = "ef79caa"
"""The commit whose package locked as soon as it was installed, and held the drop-ins of the lock itself."""


@pytest.fixture(params=VARIANTS, ids="-".join)
def session(request: pytest.FixtureRequest, wheels: Path) -> Iterator[Session]:
    """A computer without the service."""
    with start_session(request.param, wheels) as started:
        yield started


def build_package(checkout: Path) -> Path:
    output = checkout / "dist"
    subprocess.run(
        [sys.executable, "-m", "psiphon_vpn", "package", "--output", str(output)],
        env={**os.environ, "PYTHONPATH": str(checkout / "src")},
        check=True,
        capture_output=True,
        timeout=300,
        cwd=checkout,
    )
    return next(output.glob("*.deb"))


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The .deb of this checkout."""
    checkout = tmp_path_factory.mktemp("this")
    copy_clone(checkout)
    return build_package(checkout)


@pytest.fixture(scope="session")
def former_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The .deb of the version whose package locked by itself."""
    checkout = tmp_path_factory.mktemp("former")
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", FORMER], capture_output=True, check=False, timeout=60)
    if archive.returncode != 0:
        pytest.skip(f"this clone does not have the commit {FORMER}")
    subprocess.run(["tar", "-x", "-C", str(checkout)], input=archive.stdout, check=True, timeout=60)
    try:
        return build_package(checkout)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"the earlier version's package cannot be built with today's packages: {error.stderr[-300:]!r}")


def bring(session: Session, package: Path, name: str) -> str:
    """Put a package on the computer's disk."""
    place = f"/root/{name}.deb"
    (session.computer.files / place.lstrip("/")).write_bytes(package.read_bytes())
    return place


def set_up(session: Session, *more: str) -> subprocess.CompletedProcess[str]:
    core = ("--core-file", CORE, "--sha256", session.service.core_sha256)
    return session.service.command(
        "setup", *core, "--offline", "--yes", "--yes-cut-remote-sessions", *more, timeout=240
    )


def read_units(session: Session) -> dict[str, str]:
    """The dependencies of the targets and network managers, and the units that run."""
    shown = ("sysinit.target", "multi-user.target", "NetworkManager.service", "systemd-networkd.service")
    argv = ["systemctl", "show", "--property=Id,Wants,Requires,After,DropInPaths", *shown]
    active = ["systemctl", "list-units", "--plain", "--no-legend", "--state=active", "--type=service,target"]
    # Other units come and go by themselves: an idle dispatcher, jobs of a first boot.
    watched = re.compile(r".*psiphon|(NetworkManager|systemd-networkd|systemd-resolved)\.service\Z")
    names = [line.split()[0] for line in session.computer.run(active).stdout.splitlines()]
    parts = (line.partition("=") for line in session.computer.run(argv).stdout.splitlines())
    wanted = [f"{name}={' '.join(sorted(value.split()))}" for name, _equals, value in parts]
    return {
        "wanted": "\n".join(wanted),
        "active": " ".join(sorted(name for name in names if watched.match(name))),
        "resolver": session.computer.run(["cat", "/etc/resolv.conf"]).stdout,
    }


@pytest.mark.requirement("R3", "R21")
def test_a_package_changes_nothing_until_it_is_set_up_and_goes_without_a_trace(session: Session, package: Path) -> None:
    computer, service = session.computer, session.service
    place = bring(session, package, "psiphon-vpn")
    disk, kernel, units = read_disk(computer.files), read_kernel(session), read_units(session)

    said = computer.run(["dpkg", "-i", place], timeout=240)
    assert (said.stdout + said.stderr).strip().splitlines()[-1].endswith("sudo psiphon-vpn setup")

    def assert_untouched() -> None:
        status = service.command("status", check=False)
        assert status.returncode == 1
        assert status.stdout.startswith("NOT SET UP.")
        assert "sudo psiphon-vpn setup" in status.stdout
        assert service.command("start", check=False).returncode != 0
        for unit in UNITS:
            if unit != KILLSWITCH_FAILED_UNIT:  # a failed boot lock starts this unit, a skipped one does not
                computer.run(["systemctl", "start", unit], check=False)
            shown = computer.show(unit, "ActiveState")
            assert shown["ActiveState"] == "inactive", unit
        differences = kernel.list_differences(read_kernel(session))
        assert not differences, differences[:20]
        assert_open_as_before(session)

    assert read_units(session) == units
    assert_untouched()
    computer.reboot()
    computer.wait_address()
    assert read_units(session) == units
    assert_untouched()
    changed = [line.split()[1] for line in list_changes(disk, read_disk(computer.files))]
    # Other programs read only two of its files by themselves: apt's and the documents.
    assert not [
        path
        for path in changed
        if not path.startswith(("usr/lib/psiphon-vpn", "usr/bin/psiphon", "usr/sbin/psiphon", "usr/share/", "etc/apt/"))
        and "psiphon-" not in Path(path).name
    ]

    begin = time.monotonic()
    said = set_up(session)
    note("setup after a .deb", system=session.name, seconds=round(time.monotonic() - begin, 1))
    with scenario(session, "package: set up, open, reinstall, reboot"):
        assert not session.find_answers()
        service.configure()
        service.command("reload")
        service.wait_open()
        begin = time.monotonic()
        computer.run(["dpkg", "-i", place], timeout=240)
        note("reinstallation of a .deb while open", system=session.name, seconds=round(time.monotonic() - begin, 1))
        service.wait_open()
        assert not session.find_flaws_when_open()
        computer.reboot()
        service.wait_open(seconds=60)
        assert not session.find_flaws_when_open()
    said = computer.run(["dpkg", "--remove", "psiphon-vpn"], timeout=240)
    assert "this opens the network" in said.stdout + said.stderr
    computer.wait_address()
    assert_open_as_before(session)
    config = computer.files / "etc/psiphon-vpn/config.toml"
    assert config.stat().st_uid == 0
    assert "TargetServerEntry" in config.read_text()
    computer.run(["dpkg", "--purge", "psiphon-vpn"], timeout=240)
    changes = list_changes(disk, read_disk(computer.files))
    assert not changes, changes[:20]
    differences = kernel.list_differences(read_kernel(session))
    assert not differences, differences[:20]
    assert read_units(session) == units


@pytest.mark.requirement("R2", "R3", "R14")
def test_a_machine_that_the_former_package_locked_is_upgraded_without_a_gap(
    session: Session, package: Path, former_package: Path
) -> None:
    computer, service = session.computer, session.service
    former, this = bring(session, former_package, "former"), bring(session, package, "this")
    computer.run(["dpkg", "-i", former], timeout=240)
    with scenario(session, "package of before: locked, open, upgraded, cut off in the upgrade"):
        assert not session.find_answers()
        # Locked, without a core: this state is upgraded too.
        computer.run(["dpkg", "-i", this], timeout=240)
        assert not session.find_answers()
        set_up(session)  # it also brings a locked machine what it lacks, from a file
        service.configure()
        service.command("reload")
        service.wait_open()
        computer.run(["dpkg", "-i", former], timeout=240)
        service.wait_open()
        begin = time.monotonic()
        computer.run(["dpkg", "-i", this], timeout=240)
        note("upgrade of the former .deb while open", system=session.name, seconds=round(time.monotonic() - begin, 1))
        service.wait_open()
        assert not session.find_flaws_when_open()
        # Once more: now the power fails when the old drop-ins are gone and nothing is configured yet.
        computer.run(["dpkg", "-i", former], timeout=240)
        service.wait_open()
        computer.run(["dpkg", "--unpack", this], timeout=240)
        assert not (computer.files / "usr/lib/systemd/system/sysinit.target.d/psiphon-vpn.conf").exists()
        computer.power_cycle()
        assert computer.show(KILLSWITCH_UNIT, "ActiveState")["ActiveState"] == "active"
        service.wait_open(seconds=60)
        computer.run(["dpkg", "--configure", "-a"], timeout=240)
        service.wait_open()
        assert not session.find_flaws_when_open()
        computer.reboot()
        service.wait_open(seconds=60)
        assert not session.find_flaws_when_open()
    left = list(computer.files.glob("usr/lib/systemd/system/*.d/psiphon-vpn.conf"))
    assert not left
    computer.run(["dpkg", "--purge", "psiphon-vpn"], timeout=240)
    computer.wait_address()
    assert_open_as_before(session)
    assert not list(computer.files.glob("usr/lib/s*/**/*psiphon*"))


@pytest.mark.requirement("R2")
@pytest.mark.parametrize("session", VARIANTS[:1], ids="-".join, indirect=True)
def test_a_half_done_set_up_boots_locked_and_says_how_to_finish_it(session: Session, package: Path) -> None:
    computer, service = session.computer, session.service
    place = bring(session, package, "psiphon-vpn")
    computer.run(["dpkg", "-i", place], timeout=240)
    # Killed as soon as a target wants the boot lock: before the lock closes.
    dropin, command = Layout().dropin("sysinit.target"), Layout().command
    core = f"--core-file {CORE} --sha256 {service.core_sha256}"
    computer.run(
        [
            "sh",
            "-c",
            f"{command} setup --yes --offline --yes-cut-remote-sessions {core} & "
            f"until [ -e {dropin} ]; do :; done; kill -KILL $!; wait $! || true",
        ],
        timeout=240,
    )
    assert service.command("status", check=False).returncode == 1
    computer.power_cut()
    with scenario(session, "half-done set-up: the power fails, it boots locked, it is finished"):
        computer.power_on()
        assert computer.show(KILLSWITCH_UNIT, "ActiveState")["ActiveState"] == "active"
        assert not session.find_answers()
        set_up(session)
        service.configure()
        service.command("reload")
        service.wait_open()
    assert service.command("status").stdout.startswith("PROTECTED")
