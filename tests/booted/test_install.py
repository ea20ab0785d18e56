"""Installation, upgrade and removal on booted systems: from a clone and from a package."""

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
from tests.booted.snapshot import list_changes, read_disk

from psiphon_lab.addresses import LAN_A
from psiphon_lab.booted.clone import copy_clone
from psiphon_lab.booted.installation import CORE
from psiphon_lab.booted.kernel_state import KernelState, read_kernel_state
from psiphon_lab.booted.session import Session

# The other way round than in test_service.py, so that every system is tried with every network manager.
VARIANTS = [("debian12", "systemd-networkd"), ("debian13", "NetworkManager")]
PREVIOUS = "0.0.9"


@pytest.fixture(params=VARIANTS, ids="-".join)
def session(request: pytest.FixtureRequest, wheels: Path) -> Iterator[Session]:
    """A computer without the service."""
    with start_session(request.param, wheels) as started:
        yield started


def read_kernel(session: Session) -> KernelState:
    return read_kernel_state(session.world.client)


def assert_open_as_before(session: Session) -> None:
    """Everything gets out again, and comes back, at the latest when the network manager is done."""

    def find_wrong() -> list[str]:
        found = session.probe()
        wanted = {4: LAN_A.client4, 6: LAN_A.network6.partition("::")[0]}
        pages = {
            f"{label}-tcp-ipv{family}-internet-plain": address
            for label in ("root", "user")
            for family, address in wanted.items()
        }
        return [
            f"{name}: {found[name]}" for name, address in pages.items() if not found[name].answer.startswith(address)
        ]

    deadline = time.monotonic() + 20
    while (wrong := find_wrong()) and time.monotonic() < deadline:
        pass
    assert not wrong, wrong
    assert not session.control()


@pytest.mark.requirement("R3", "R12", "R21")
def test_from_a_clone_it_installs_survives_a_reboot_and_goes_without_a_trace(session: Session) -> None:
    computer, service = session.computer, session.service
    # The environment of the clone is the user's; what it makes is not the installation's.
    service.run_setup("--version")
    disk, kernel = read_disk(computer.files), read_kernel(session)
    said = service.run_setup("install", "--dry-run", "--core-file", CORE, "--sha256", service.core_sha256)
    assert "Nothing was changed" in said.stdout + said.stderr
    assert not list_changes(disk, read_disk(computer.files))

    begin = time.monotonic()
    service.install()
    note("install without making the environment", system=session.name, seconds=round(time.monotonic() - begin, 1))
    with scenario(session, "from install to open, and a reboot"):
        service.configure()
        service.command("reload")
        service.wait_open()
        assert not session.find_flaws_when_open()
        computer.reboot()
        service.wait_open(seconds=60)
        assert not session.find_flaws_when_open()
    assert list_changes(disk, read_disk(computer.files))
    service.run_setup("uninstall", "--yes")
    computer.wait_address()
    assert_open_as_before(session)
    changes = list_changes(disk, read_disk(computer.files))
    assert not changes, changes[:20]
    differences = kernel.list_differences(read_kernel(session))
    assert not differences, differences[:20]
    # And nothing comes back at the next boot.
    computer.reboot()
    computer.wait_address()
    assert_open_as_before(session)
    assert not read_kernel(session).ruleset
    assert computer.run(["systemctl", "--failed", "--no-legend"]).stdout == ""


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The .deb of this checkout, and of one that is older by its version."""
    directory = tmp_path_factory.mktemp("packages")
    found = []
    for version in (PREVIOUS, None):
        checkout = directory / (version or "this")
        copy_clone(checkout)
        if version is not None:
            init = checkout / "src/psiphon_vpn/__init__.py"
            init.write_text(re.sub(r'(__version__[^"]*)"[^"]+"', rf'\1"{version}"', init.read_text()))
            project = checkout / "pyproject.toml"
            project.write_text(re.sub(r'(?m)^version = "[^"]+"', f'version = "{version}"', project.read_text()))
        output = checkout / "dist"
        subprocess.run(
            [sys.executable, "-m", "psiphon_vpn", "package", "--output", str(output)],
            env={**os.environ, "PYTHONPATH": str(checkout / "src")},
            check=True,
            capture_output=True,
            timeout=120,
            cwd=checkout,
        )
        found.append(next(output.glob("*.deb")))
    return found[0], found[1]


@pytest.mark.requirement("R3", "R14")
def test_from_a_package_it_installs_upgrades_while_open_and_goes_without_a_trace(
    session: Session, packages: tuple[Path, Path]
) -> None:
    computer, service = session.computer, session.service
    for package in packages:
        (computer.files / "root" / package.name).write_bytes(package.read_bytes())
    previous, this = (f"/root/{package.name}" for package in packages)
    assert previous != this
    disk, kernel = read_disk(computer.files), read_kernel(session)

    begin = time.monotonic()
    computer.run(["dpkg", "-i", previous], timeout=120)
    note("install from a .deb", system=session.name, seconds=round(time.monotonic() - begin, 1))
    with scenario(session, "package: open, upgrade, reinstall, reboot"):
        assert not session.find_answers()
        service.command("update", "--core-file", CORE, "--sha256", service.core_sha256, "--yes")
        service.configure()
        service.command("reload")
        service.wait_open()
        assert PREVIOUS in service.command("--version").stdout
        begin = time.monotonic()
        computer.run(["dpkg", "-i", this], timeout=120)
        note("upgrade of a .deb while open", system=session.name, seconds=round(time.monotonic() - begin, 1))
        service.wait_open()
        assert PREVIOUS not in service.command("--version").stdout
        assert not session.find_flaws_when_open()
        computer.run(["dpkg", "-i", this], timeout=120)
        service.wait_open()
        computer.reboot()
        service.wait_open(seconds=60)
        assert not session.find_flaws_when_open()
    computer.run(["dpkg", "--purge", "psiphon-vpn"], timeout=120)
    computer.wait_address()
    assert_open_as_before(session)
    changes = list_changes(disk, read_disk(computer.files))
    assert not changes, changes[:20]
    differences = kernel.list_differences(read_kernel(session))
    assert not differences, differences[:20]
