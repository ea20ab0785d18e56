# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The power fails, or somebody sends SIGKILL, before each effect of an installation, an upgrade and a removal.

A child process does the work and ends without any clean-up at the n-th effect. Then the same command, or the opposite
one, must bring the machine to a complete state. Every n is tried.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests import scratch_machine
from tests.scratch_machine import ACTING, NETWORK_MANAGER, PAYLOAD, ScratchFile, ScratchMachine, make_machine
from tests.unit.test_install import say_nothing, unpack

from psiphon_vpn.policy.sysctls import GLOBAL_SYSCTLS
from psiphon_vpn.system import configure
from psiphon_vpn.system.install import configure_package, find_interruption, install_clone, set_up, uninstall
from psiphon_vpn.system.journal import Journal
from psiphon_vpn.system.set_up import SetUp, find_set_up
from psiphon_vpn.system.stage import Stage

pytestmark = [
    pytest.mark.lab,
    pytest.mark.usefixtures("quick_disk"),
    pytest.mark.requirement("R1", "R3"),
    pytest.mark.timeout(400),  # seconds: some hundred machines each, on a processor that may be shared
]

KILLED, FAILED = 9, 1
EFFECTS = ("replace", "unlink", "rmdir", "mkdir", "fsync", "chown", "fchown", "chmod", "fchmod", "symlink")
NEW = (
    *PAYLOAD[:1],
    *(ScratchFile(path=file.path, content=file.content + b"# new\n", mode=file.mode) for file in PAYLOAD[2:]),
    ScratchFile(path="/usr/lib/psiphon-vpn/lib/new.py", content=b"new"),
)


@pytest.fixture(autouse=True)
def few_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """One setting shows as much as eight."""
    monkeypatch.setattr(configure, "GLOBAL_SYSCTLS", dict(list(GLOBAL_SYSCTLS.items())[:1]))


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """In memory: some hundred machines are made here."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        yield Path(directory)


def do_install(machine: ScratchMachine) -> None:
    install_clone(machine.platform, PAYLOAD, ACTING, say=say_nothing)


def do_upgrade(machine: ScratchMachine) -> None:
    install_clone(machine.platform, NEW, ACTING, say=say_nothing)


def do_uninstall(machine: ScratchMachine) -> None:
    uninstall(machine.platform, say=say_nothing)


def do_configure(machine: ScratchMachine) -> None:
    configure_package(machine.platform, ACTING, say=say_nothing, close=True)


def do_set_up(machine: ScratchMachine) -> None:
    set_up(machine.platform, ACTING, say=say_nothing)


def run_until(machine: ScratchMachine, work: Callable[[ScratchMachine], None], effects: int) -> bool:
    """Do the work in a child that is killed before its n-th effect; returns whether it was killed."""
    pid = os.fork()
    if pid == 0:
        left = itertools.count(effects, -1)

        def count() -> None:
            if next(left) == 0:
                os._exit(KILLED)

        try:
            for name in EFFECTS:
                setattr(os, name, _counted(getattr(os, name), count))
            scratch_machine.hook = count
            work(machine)
        except BaseException:  # noqa: BLE001  the child must not continue as a second pytest
            traceback.print_exc()
            os._exit(FAILED)
        os._exit(0)
    _pid, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in {0, KILLED}, "the work failed by itself"
    return code == KILLED


def _counted(function: Callable[..., Any], count: Callable[[], None]) -> Callable[..., Any]:
    def counted(*args: Any, **options: Any) -> Any:
        count()
        return function(*args, **options)

    return counted


def crash_everywhere(
    directory: Path, work: Callable[[ScratchMachine], None], *begin: Callable[[ScratchMachine], None]
) -> Iterator[ScratchMachine]:
    """A machine for each effect of the work, killed before it."""
    for effects in itertools.count():
        place = directory / str(effects)
        place.mkdir()
        machine = make_machine(place)
        for earlier in begin:
            earlier(machine)
        if not run_until(machine, work, effects):
            assert effects > 20, "the work has hardly any effects: are they counted?"
            return
        yield machine


def read_stage(machine: ScratchMachine) -> Stage | None:
    record = Journal(machine.platform).read()
    return None if record is None else record.stage


def whole(machine: ScratchMachine) -> dict[str, Any]:
    """Everything but the journal's own text, whose order of entries may differ."""
    state = machine.read_all()
    state["tree"].pop("var/lib/psiphon-vpn/journal.json", None)
    state["active"] = sorted(state["active"])
    return state


def assert_same(machine: ScratchMachine, expected: dict[str, Any]) -> None:
    """Require that the machine is as expected; the error names only the differences."""
    found = whole(machine)
    assert dict(found["tree"].items() ^ expected["tree"].items()) == {}
    assert found == expected


@pytest.fixture
def ends(tmp_path: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The states of a machine: before, installed, and upgraded."""
    place = tmp_path / "ends"
    place.mkdir()
    machine = make_machine(place)
    before = whole(machine)
    do_install(machine)
    installed = whole(machine)
    do_upgrade(machine)
    return before, installed, whole(machine)


Ends = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]


@pytest.mark.parametrize("recover", [do_install, do_uninstall])
def test_an_installation_killed_anywhere_is_completed_or_undone(
    tmp_path: Path, ends: Ends, recover: Callable[[ScratchMachine], None]
) -> None:
    before, installed, _upgraded = ends
    closed = 0
    for machine in crash_everywhere(tmp_path, do_install):
        # It says done only when everything is done.
        assert read_stage(machine) is not Stage.INSTALLED or whole(machine) == installed
        if (is_locked := machine.platform.kernel.is_locked()) is True:
            closed += 1
            assert machine.boots_locked, "locked now, and open after the next boot"
        if machine.boots_locked:
            assert machine.platform.layout.boot_rules.is_file(), "the boot lock would find no rules"
        recover(machine)
        assert_same(machine, installed if recover is do_install else before)
        assert find_interruption(machine.platform) is None
        assert is_locked in {True, False}
    assert closed > 3


@pytest.mark.parametrize("recover", [do_install, do_uninstall])
def test_a_removal_killed_anywhere_is_completed_or_taken_back(
    tmp_path: Path, ends: Ends, recover: Callable[[ScratchMachine], None]
) -> None:
    before, installed, _upgraded = ends
    opened = 0
    for machine in crash_everywhere(tmp_path, do_uninstall, do_install):
        if machine.platform.kernel.is_locked() is not True:
            opened += 1
            left = whole(machine)
            left["tree"] = {path: what for path, what in left["tree"].items() if path != "var/lib/psiphon-vpn"}
            assert left == before, "open, and not as before"
        if machine.boots_locked:
            assert machine.platform.layout.boot_rules.is_file() or machine.platform.kernel.is_locked() is True
        recover(machine)
        assert_same(machine, installed if recover is do_install else before)
    assert opened


@pytest.mark.parametrize("recover", [do_install, do_uninstall])
def test_a_removal_cut_off_by_the_power_boots_into_a_whole_lock_or_into_none(
    tmp_path: Path, ends: Ends, recover: Callable[[ScratchMachine], None]
) -> None:
    """Never into a lock without its rules, or with a network manager that waits for a unit that is gone."""
    before, installed, _upgraded = ends
    ends_of_boot = set()
    for machine in crash_everywhere(tmp_path, do_uninstall, do_install):
        machine.power_cycle()
        state = machine.read_all()
        assert NETWORK_MANAGER in state["active"], "nothing brings the network up"
        assert state["tables"] == machine.boots_locked
        ends_of_boot.add(state["tables"])
        # The kernel's state went with the power: the removal need not undo any of it.
        machine.set_state(settings=dict.fromkeys(state["settings"], "7"))
        recover(machine)
        assert_same(machine, installed if recover is do_install else before)
    assert ends_of_boot == {True, False}


@pytest.mark.requirement("R2")
@pytest.mark.parametrize("recover", [do_upgrade, do_uninstall])
def test_an_upgrade_killed_anywhere_never_opens(
    tmp_path: Path, ends: Ends, recover: Callable[[ScratchMachine], None]
) -> None:
    before, _installed, upgraded = ends
    for machine in crash_everywhere(tmp_path, do_upgrade, do_install):
        assert machine.platform.kernel.is_locked() is True
        assert machine.boots_locked
        assert machine.platform.layout.boot_rules.is_file()
        recover(machine)
        assert_same(machine, upgraded if recover is do_upgrade else before)


@pytest.mark.requirement("R2")
def test_a_packages_configuration_killed_anywhere_is_completed(tmp_path: Path) -> None:
    place = tmp_path / "end"
    place.mkdir()
    reference = make_machine(place)
    unpack(reference)
    do_configure(reference)
    for machine in crash_everywhere(tmp_path, do_configure, unpack):
        assert machine.platform.kernel.is_locked() is False or machine.boots_locked
        do_configure(machine)
        assert_same(machine, whole(reference))


@pytest.mark.requirement("R2")
@pytest.mark.parametrize("recover", [do_set_up, do_uninstall])
def test_a_set_up_killed_anywhere_boots_as_before_or_locked_and_is_completed_or_undone(
    tmp_path: Path, recover: Callable[[ScratchMachine], None]
) -> None:
    place = tmp_path / "end"
    place.mkdir()
    reference = make_machine(place)
    unpack(reference)
    do_set_up(reference)
    done = whole(reference)
    booted = {True: 0, False: 0}
    for machine in crash_everywhere(tmp_path, do_set_up, unpack):
        is_locked, found = machine.platform.kernel.is_locked(), find_set_up(machine.platform.layout)
        assert not (is_locked and found is SetUp.NO), "locked, but no set-up is recorded"
        assert found is not SetUp.YES or whole(machine) == done
        rules = machine.platform.layout.boot_rules.is_file()
        drop_ins = (machine.platform.layout.dropin("sysinit.target")).is_file()
        machine.power_cycle()
        state = machine.read_all()
        # From the drop-in on, which comes right after the rules, it boots locked. The network manager starts in any
        # case.
        assert state["tables"] is drop_ins
        assert rules or not drop_ins
        assert NETWORK_MANAGER in state["active"]
        booted[state["tables"]] += 1
        recover(machine)
        if recover is do_set_up:
            assert find_set_up(machine.platform.layout) is SetUp.YES
            assert machine.boots_locked
            assert machine.platform.kernel.is_locked() is True
        else:
            assert find_set_up(machine.platform.layout) is SetUp.NO
            assert not machine.boots_locked
            assert machine.platform.kernel.is_locked() is False
    assert min(booted.values()) > 3


@pytest.mark.requirement("R2", "R3")
def test_an_upgrade_of_a_package_killed_anywhere_never_opens(tmp_path: Path) -> None:
    for machine in crash_everywhere(tmp_path, do_configure, unpack, do_set_up):
        assert machine.platform.kernel.is_locked() is True
        assert machine.boots_locked
        assert machine.platform.layout.boot_rules.is_file()
        do_configure(machine)
        assert find_set_up(machine.platform.layout) is SetUp.YES


@pytest.mark.requirement("R3")
def test_the_removal_of_a_package_killed_anywhere_is_completed_or_taken_back(tmp_path: Path) -> None:
    place = tmp_path / "end"
    place.mkdir()
    reference = make_machine(place)
    for step in (unpack, do_set_up, do_uninstall):
        step(reference)
    for machine in crash_everywhere(tmp_path, do_uninstall, unpack, do_set_up):
        if machine.platform.kernel.is_locked() is not True:
            assert not machine.boots_locked, "open, and closed at the next boot"
        assert find_set_up(machine.platform.layout) is not SetUp.NO or not machine.boots_locked
        do_uninstall(machine)
        assert_same(machine, whole(reference))
