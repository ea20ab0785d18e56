# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""One change of an installation fails, in every possible way, when it is made or when it is undone.

Afterwards the machine is either locked now and at its next boot, or open with nothing of the lock left. It is never
locked only until it is switched off, and never closed at boot if it was not before.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.scratch_machine import ACTING, PAYLOAD, ScratchMachine, make_machine
from tests.unit.test_install import say_nothing, unpack
from tests.unit.test_tree_removal import make_deep

from psiphon_vpn.errors import UserError
from psiphon_vpn.policy.sysctls import GLOBAL_SYSCTLS
from psiphon_vpn.run import CommandError
from psiphon_vpn.system import configure
from psiphon_vpn.system.change import Change
from psiphon_vpn.system.install import configure_package, install_clone, uninstall
from psiphon_vpn.system.journal import Journal, UndoError
from psiphon_vpn.system.layout import KILLSWITCH_UNIT
from psiphon_vpn.tree_removal import remove_tree

pytestmark = [
    pytest.mark.lab,
    pytest.mark.usefixtures("quick_disk"),
    pytest.mark.requirement("R1", "R2", "R3", "R24"),
]

FAILURES = (
    OSError(errno.EROFS, "Read-only file system", "somewhere"),
    CommandError(["systemctl"], "it hangs"),
    RecursionError("maximum recursion depth exceeded"),
    MemoryError(),
    KeyError("missing"),
)


@pytest.fixture(autouse=True)
def few_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """One setting is as good as eight."""
    monkeypatch.setattr(configure, "GLOBAL_SYSCTLS", dict(list(GLOBAL_SYSCTLS.items())[:1]))


@pytest.fixture
def new_machine() -> Iterator[Callable[[], ScratchMachine]]:
    """A function that makes machines in memory."""
    directory = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield lambda: make_machine(Path(tempfile.mkdtemp(dir=directory)))
    remove_tree(directory)


def install(machine: ScratchMachine) -> None:
    install_clone(machine.platform, PAYLOAD, ACTING, say=say_nothing)


def configure_files(machine: ScratchMachine) -> None:
    unpack(machine)
    configure_package(machine.platform, ACTING, say=say_nothing, close=True)


def list_changes(machine: ScratchMachine) -> tuple[Change, ...]:
    record = Journal(machine.platform).read()
    assert record is not None
    return record.changes


def fail(monkeypatch: pytest.MonkeyPatch, name: str, key: tuple[str, str], failure: BaseException) -> None:
    """Make one change's `apply` or `undo` fail."""
    kind = next(kind for kind in _all_kinds(Change) if getattr(kind, "kind", None) == key[0])
    right = getattr(kind, name)

    def wrong(self: Change, platform: Any) -> None:
        if (self.kind, self.key) == key:
            raise failure
        right(self, platform)

    monkeypatch.setattr(kind, name, wrong)


def _all_kinds(kind: type[Change]) -> Iterator[type[Change]]:
    for inner in kind.__subclasses__():
        yield inner
        yield from _all_kinds(inner)


def whole(machine: ScratchMachine) -> dict[str, Any]:
    state = machine.read_all()
    state["tree"].pop("var/lib/psiphon-vpn/journal.json", None)
    state["active"] = sorted(state["active"])
    return state


def assert_locked_or_open(machine: ScratchMachine, before: dict[str, Any]) -> bool:
    """Require that the machine is either locked or open as before; returns whether it is locked."""
    locked = machine.platform.kernel.is_locked()
    if locked:
        assert machine.store.read()["tables"]
        assert machine.boots_locked, "locked now, and open after the next boot"
        assert machine.platform.layout.boot_rules.is_file(), "the boot lock would find no rules"
    else:
        assert whole(machine) == before, "open, and not as before"
    return bool(locked)


@pytest.mark.parametrize("begin", [install, configure_files])
@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
def test_whatever_cannot_be_undone_leaves_the_machine_locked_at_boot_too_until_it_can(
    new_machine: Callable[[], ScratchMachine],
    begin: Callable[[ScratchMachine], None],
    failure: Exception,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    example = new_machine()
    if begin is configure_files:
        unpack(example)
    before = whole(example)
    begin(example)
    changes = list_changes(example)
    assert len(changes) > 15
    for change in changes:
        if begin is configure_files and change.key.startswith("/etc/psiphon-vpn"):
            continue  # the removal of a package keeps it
        machine = new_machine()
        begin(machine)
        with monkeypatch.context() as patch:
            fail(patch, "undo", (change.kind, change.key), failure)
            with pytest.raises(UndoError) as caught:
                uninstall(machine.platform, say=say_nothing)
            assert list(caught.value.failures) == [change]
            assert "stays locked" in caught.value.what
            assert assert_locked_or_open(machine, before)
            with pytest.raises(UndoError):  # again, while the cause is still there
                uninstall(machine.platform, say=say_nothing)
            assert assert_locked_or_open(machine, before)
        uninstall(machine.platform, say=say_nothing)
        after = whole(machine)
        if begin is configure_files:
            after["active"].remove(KILLSWITCH_UNIT)  # its unit file belongs to the package, which goes next
            after["tree"] = {path: what for path, what in after["tree"].items() if "etc/psiphon-vpn" not in path}
        assert after == before


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
def test_whatever_cannot_be_made_leaves_the_machine_as_it_was_or_locked_at_boot_too(
    new_machine: Callable[[], ScratchMachine], failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = new_machine()
    before = whole(example)
    install(example)
    installed = whole(example)
    ends = set()
    for change in list_changes(example):
        machine = new_machine()
        with monkeypatch.context() as patch:
            fail(patch, "apply", (change.kind, change.key), failure)
            try:
                install(machine)
            except UserError as error:
                is_locked = assert_locked_or_open(machine, before)
                assert ("stays locked" if is_locked else "as it was before") in error.what
                assert "somewhere" in error.why or not isinstance(failure, OSError)
                ends.add(is_locked)
            else:
                assert whole(machine) == installed  # a change that does nothing by itself
        install(machine)
        assert whole(machine) == installed
        uninstall(machine.platform, say=say_nothing)
        assert whole(machine) == before
    assert ends == {True, False}


@pytest.mark.parametrize("interruption", [KeyboardInterrupt(), SystemExit(1)])
def test_an_interruption_while_the_lock_is_undone_puts_it_back(
    new_machine: Callable[[], ScratchMachine], interruption: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = new_machine()
    before = whole(machine)
    install(machine)
    fail(monkeypatch, "undo", ("tables", "tables"), interruption)
    with pytest.raises(type(interruption)):
        uninstall(machine.platform, say=say_nothing)
    assert assert_locked_or_open(machine, before)


def test_a_removal_that_fails_leaves_the_program_that_goes_on_with_it(
    new_machine: Callable[[], ScratchMachine], monkeypatch: pytest.MonkeyPatch
) -> None:
    example = new_machine()
    install(example)
    for change in list_changes(example):
        machine = new_machine()
        install(machine)
        with monkeypatch.context() as patch:
            fail(patch, "undo", (change.kind, change.key), OSError(errno.EPERM, "Operation not permitted"))
            with pytest.raises(UndoError):
                uninstall(machine.platform, say=say_nothing)
        for file in PAYLOAD[:2]:
            assert (machine.root / file.path.lstrip("/")).read_bytes() == file.content


def test_a_deep_tree_in_the_services_data_is_removed_with_it(new_machine: Callable[[], ScratchMachine]) -> None:
    """A compromised core could make such a tree."""
    machine = new_machine()
    before = whole(machine)
    install(machine)
    make_deep(machine.platform.layout.state_dir / "core", 5000)
    uninstall(machine.platform, say=say_nothing)
    assert whole(machine) == before


def test_a_failed_installation_tells_its_reason_first_when_it_cannot_be_undone_either(
    new_machine: Callable[[], ScratchMachine], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = new_machine()
    machine.break_unit("bad")  # nft refuses the rules
    fail(monkeypatch, "undo", ("directory", "/usr/lib/psiphon-vpn/rules"), OSError(errno.EIO, "Input/output error"))
    with pytest.raises(UserError, match="does not accept the rules") as caught:
        install(machine)
    assert "not everything could be undone" in caught.value.what
    assert not machine.platform.kernel.is_locked()


def test_a_killed_terminal_does_not_stop_a_removal(new_machine: Callable[[], ScratchMachine]) -> None:
    machine = new_machine()
    before = whole(machine)
    install(machine)

    def say(_line: str) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    uninstall(machine.platform, say=say)
    assert whole(machine) == before
