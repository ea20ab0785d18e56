# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Installation, reboot and removal on booted systems, from a clone. test_package.py has packages."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.booted.conftest import note, scenario, start_session
from tests.booted.open_machine import assert_open_as_before, read_kernel
from tests.booted.snapshot import list_changes, read_disk

from psiphon_lab.booted.installation import CORE
from psiphon_lab.booted.session import Session

# The reverse of test_service.py, so that every system is tried with every network manager.
VARIANTS = [("debian12", "systemd-networkd"), ("debian13", "NetworkManager")]


@pytest.fixture(params=VARIANTS, ids="-".join)
def session(request: pytest.FixtureRequest, wheels: Path) -> Iterator[Session]:
    """A computer without the service."""
    with start_session(request.param, wheels) as started:
        yield started


@pytest.mark.requirement("R3", "R12", "R21")
def test_from_a_clone_it_installs_survives_a_reboot_and_uninstalls_without_a_trace(session: Session) -> None:
    computer, service = session.computer, session.service
    # The clone's virtual environment belongs to the user, not to the installation.
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
    # Nothing comes back at the next boot.
    computer.reboot()
    computer.wait_address()
    assert_open_as_before(session)
    assert not read_kernel(session).ruleset
    assert computer.run(["systemctl", "--failed", "--no-legend"]).stdout == ""
