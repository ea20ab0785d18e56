# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Installation and removal on a scratch tree: what they leave, in which order, and what a failure ends in."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tests import scratch_machine
from tests.scratch_machine import ACTING, PAYLOAD, ScratchFile, ScratchMachine, make_machine

from psiphon_vpn.errors import UserError
from psiphon_vpn.system.change_kinds import restore_change
from psiphon_vpn.system.install import configure_package, find_interruption, install_clone, set_up, uninstall
from psiphon_vpn.system.journal import Journal, Method, UndoError
from psiphon_vpn.system.layout import GUARD_UNIT, KILLSWITCH_UNIT, SERVICE_UNIT
from psiphon_vpn.system.set_up import SetUp, find_set_up
from psiphon_vpn.system.stage import JournalError, Stage
from psiphon_vpn.system.system_changes import UnitStarted
from psiphon_vpn.system.tree_changes import FileWritten, write_file

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("quick_disk")]  # needs root: it checks real owners


@pytest.fixture
def machine(tmp_path: Path) -> ScratchMachine:
    return make_machine(tmp_path)


def say_nothing(_line: str) -> None:
    """Say nothing."""


def install(machine: ScratchMachine, payload: tuple[ScratchFile, ...] = PAYLOAD) -> None:
    install_clone(machine.platform, payload, ACTING, say=say_nothing)


@pytest.mark.requirement("R3")
def test_an_uninstalled_machine_is_in_every_file_mode_owner_link_and_setting_as_before(machine: ScratchMachine) -> None:
    before = machine.read_all()
    install(machine)
    assert machine.read_all() != before
    assert uninstall(machine.platform, say=say_nothing)
    assert machine.read_all() == before


@pytest.mark.requirement("R3")
def test_each_interface_gets_its_own_setting_back_also_after_a_reboot(machine: ScratchMachine) -> None:
    """Every interface gets the value of `default` at boot, and keeps it when `default` is restored."""
    own = "net/ipv4/conf/{}/accept_redirects"
    with machine.store.change() as state:
        state["settings"] |= {own.format("default"): "1", own.format("eth0"): "1", own.format("odd0"): "0"}
    before = machine.read_all()
    install(machine)
    assert machine.platform.kernel.read_setting(own.format("eth0")) == "0"
    install(machine)  # an update sees only the service's own values
    with machine.store.change() as state:
        state["settings"] |= {own.format("usb0"): "0"}
    assert uninstall(machine.platform, say=say_nothing)
    assert machine.platform.kernel.read_setting(own.format("usb0")) == "1", "the interface came after `default` was set"
    with machine.store.change() as state:
        del state["settings"][own.format("usb0")]
    assert machine.read_all() == before


@pytest.mark.requirement("R2", "R12")
def test_an_installed_machine_is_locked_and_its_files_have_their_owners(machine: ScratchMachine) -> None:
    install(machine)
    state = machine.store.read()
    assert state["tables"]
    assert state["guard"]
    assert {KILLSWITCH_UNIT, GUARD_UNIT, SERVICE_UNIT} <= set(state["active"])
    layout = machine.platform.layout
    for path, owner, mode in (
        (layout.config, scratch_machine.UID, 0o600),
        (layout.state_dir, scratch_machine.UID, 0o700),
        (layout.core_dir, 0, 0o755),
        (layout.boot_rules, 0, 0o644),
        (layout.guard_rules, 0, 0o644),
        (layout.frame_rules, 0, 0o644),
        (layout.bridge_rules, 0, 0o644),
        (layout.bridges, 0, 0o644),
        (layout.drop_rules, 0, 0o644),
        (layout.install_journal, 0, 0o600),
    ):
        found = path.lstat()
        assert (found.st_uid, found.st_mode & 0o7777) == (owner, mode), path
    record = Journal(machine.platform).read()
    assert record is not None
    assert record.stage is Stage.INSTALLED
    assert find_interruption(machine.platform) is None


def test_the_rules_at_boot_have_this_machines_numbers(machine: ScratchMachine) -> None:
    install(machine)
    layout = machine.platform.layout
    assert f"meta skuid {scratch_machine.UID} " in layout.guard_rules.read_text()
    assert "flags owner" in layout.guard_rules.read_text()
    assert "policy drop" in layout.boot_rules.read_text()
    # Each file replaces its table in one transaction.
    for path in (layout.boot_rules, layout.drop_rules, layout.guard_rules):
        assert "delete table inet psiphon_" in path.read_text()


@pytest.mark.requirement("R3")
def test_removal_opens_the_network_last_of_all(machine: ScratchMachine) -> None:
    before = scratch_machine.list_tree(machine.root)
    install(machine)
    uninstall(machine.platform, say=say_nothing)
    # At the moment of opening, only what was there before is left.
    left = [path for path in machine.store.read()["left_at_opening"] if path not in before]
    assert left == ["var/lib/psiphon-vpn"]  # the journal is there


def test_a_second_installation_changes_nothing(machine: ScratchMachine) -> None:
    install(machine)
    first = machine.read_all()
    machine.set_state(restarted=[])
    outcome = install_clone(machine.platform, PAYLOAD, ACTING, say=say_nothing)
    assert (outcome.changes, outcome.repeated) == (0, True)
    assert machine.read_all() == first
    assert machine.store.read()["restarted"] == []


def test_a_second_installation_repairs_what_was_broken_and_replaces_what_runs(machine: ScratchMachine) -> None:
    before = machine.read_all()
    install(machine)
    first = machine.read_all()
    (machine.root / "usr/bin/psiphon-vpn").write_text("something else")
    machine.platform.layout.boot_rules.unlink()
    machine.set_state(restarted=[])
    assert install_clone(machine.platform, PAYLOAD, ACTING, say=say_nothing).changes == 2
    assert machine.read_all() == first
    assert machine.store.read()["restarted"][-2:] == [GUARD_UNIT, SERVICE_UNIT]
    uninstall(machine.platform, say=say_nothing)
    assert machine.read_all() == before


def test_a_guard_that_cannot_be_reloaded_fails_an_upgrade_and_does_not_keep_the_old_service(
    machine: ScratchMachine,
) -> None:
    install(machine)
    (machine.root / "usr/bin/psiphon-vpn").write_text("something else")
    machine.set_state(restarted=[], broken=[GUARD_UNIT])
    with pytest.raises(UserError):
        install_clone(machine.platform, PAYLOAD, ACTING, say=say_nothing)
    assert machine.store.read()["restarted"][-1] == SERVICE_UNIT
    assert machine.platform.kernel.is_locked()


def test_an_upgrade_keeps_the_configuration_and_removes_what_the_new_version_lacks(machine: ScratchMachine) -> None:
    before = machine.read_all()
    install(machine)
    config = machine.platform.layout.config
    config.write_text("socks_port = 1082\n")
    new = (*PAYLOAD[:1], *PAYLOAD[2:], ScratchFile(path="/usr/lib/psiphon-vpn/lib/new.py", content=b"new"))
    install(machine, new)
    assert config.read_text() == "socks_port = 1082\n"
    assert not (machine.root / "usr/lib/psiphon-vpn/lib/psiphon_vpn/__init__.py").exists()
    uninstall(machine.platform, say=say_nothing)
    assert machine.read_all() == before


def test_a_dry_run_says_every_change_and_makes_none(machine: ScratchMachine) -> None:
    before = machine.read_all()
    said: list[str] = []
    install_clone(machine.platform, PAYLOAD, ACTING, say=said.append, dry_run=True)
    assert machine.read_all() == before
    assert all(line.startswith("[#] ") for line in said)
    for file in PAYLOAD:
        assert f"[#] install -m {file.mode:04o} /dev/stdin {file.path}" in said
    for unit in (KILLSWITCH_UNIT, GUARD_UNIT, SERVICE_UNIT):
        assert f"[#] systemctl start {unit}" in said
    assert said.index(f"[#] systemctl start {KILLSWITCH_UNIT}") < said.index(f"[#] systemctl start {SERVICE_UNIT}")


def test_a_package_that_is_unpacked_and_configured_changes_nothing_by_itself(machine: ScratchMachine) -> None:
    unpack(machine)
    assert not machine.boots_locked, "nobody has agreed to anything yet"
    assert find_set_up(machine.platform.layout) is SetUp.NO
    acting = {file.path.lstrip("/") for file in ACTING}
    assert not acting & set(machine.read_all()["tree"])


def test_a_package_that_is_set_up_ends_in_the_same_state_as_a_clone(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    clone, package = make_machine(tmp_path / "a"), make_machine(tmp_path / "b")
    install(clone)
    unpack(package)
    unpacked = package.read_all()
    result = set_up(package.platform, ACTING, say=say_nothing)
    assert result.closed
    assert find_set_up(package.platform.layout) is SetUp.YES
    one, other = clone.read_all(), package.read_all()
    for state in (one, other):
        state["tree"].pop("var/lib/psiphon-vpn/journal.json")
    assert one == other
    assert set_up(package.platform, ACTING, say=say_nothing).changes == 0
    uninstall(package.platform, say=say_nothing)
    left = package.read_all()
    # Its unit file belongs to the package; nothing wants or requires the unit any more, and it holds no table.
    left["active"].remove(KILLSWITCH_UNIT)
    kept = {path: what for path, what in left["tree"].items() if path.startswith("etc/psiphon-vpn")}
    left["tree"] = {path: what for path, what in left["tree"].items() if path not in kept}
    assert left == unpacked
    # The configuration stays, and does not belong to a number that another account may get.
    assert set(kept) >= {"etc/psiphon-vpn", "etc/psiphon-vpn/config.toml", "etc/psiphon-vpn/readers"}
    assert {what.split()[1] for what in kept.values()} == {"0:0"}


def test_a_configuration_that_a_removal_kept_is_used_by_the_next_set_up(machine: ScratchMachine) -> None:
    unpack(machine)
    set_up(machine.platform, ACTING, say=say_nothing)
    config = machine.platform.layout.config
    config.write_text("socks_port = 1082\n")
    uninstall(machine.platform, say=say_nothing)
    assert not machine.boots_locked
    set_up(machine.platform, ACTING, say=say_nothing)
    assert config.read_text() == "socks_port = 1082\n"
    status = config.stat()
    assert (status.st_uid, status.st_mode & 0o777) == (scratch_machine.UID, 0o600)


@pytest.mark.requirement("R2")
def test_a_set_up_that_stops_after_its_rules_boots_locked(machine: ScratchMachine) -> None:
    """Even one that stops while it installs core and list, which takes longest."""
    unpack(machine)

    def stop() -> bool:
        assert machine.boots_locked
        assert machine.platform.layout.boot_rules.is_file()
        raise KeyboardInterrupt

    before = machine.read_all()
    with pytest.raises(KeyboardInterrupt):
        set_up(machine.platform, ACTING, say=say_nothing, bring=stop)
    # Ctrl-C is not a power cut: then the set-up is undone.
    assert machine.read_all() == before


def unpack(machine: ScratchMachine) -> None:
    """What dpkg does."""
    for file in PAYLOAD:
        path = machine.root / file.path.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(file.content)
        path.chmod(file.mode)


def test_an_upgrade_over_a_remote_session_closes_at_the_next_boot_and_not_now(machine: ScratchMachine) -> None:
    unpack(machine)
    outcome = configure_package(machine.platform, ACTING, say=say_nothing, close=False)
    assert not outcome.closed
    assert machine.platform.kernel.is_locked() is False
    assert machine.boots_locked
    configure_package(machine.platform, ACTING, say=say_nothing, close=True)
    assert machine.platform.kernel.is_locked() is True


@pytest.mark.requirement("R3")
def test_a_package_takes_over_what_a_clone_installed_and_its_removal_leaves_the_packages_files(
    machine: ScratchMachine,
) -> None:
    # An installation from an earlier version's clone, with a drop-in under its old name.
    former = ScratchFile(path="/usr/lib/systemd/system/sysinit.target.d/psiphon-vpn.conf", content=b"[Unit]\n")
    install(machine, (*PAYLOAD, former))
    unpack(machine)
    configure_package(machine.platform, ACTING, say=say_nothing, close=True)
    record = Journal(machine.platform).read()
    assert record is not None
    assert record.method is Method.PACKAGE
    assert not (machine.root / former.path.lstrip("/")).exists()
    assert machine.boots_locked
    uninstall(machine.platform, say=say_nothing)
    assert all((machine.root / file.path.lstrip("/")).is_file() for file in PAYLOAD)
    assert not any((machine.root / file.path.lstrip("/")).exists() for file in ACTING)
    assert machine.platform.kernel.is_locked() is False


def break_guard(machine: ScratchMachine) -> None:
    machine.break_unit(GUARD_UNIT)


def break_service(machine: ScratchMachine) -> None:
    machine.break_unit(SERVICE_UNIT)


@pytest.mark.requirement("R1", "R24")
def test_an_installation_that_fails_before_the_lock_leaves_everything_as_it_was(machine: ScratchMachine) -> None:
    machine.break_unit("bad")  # nft refuses the rules
    before = machine.read_all()
    with pytest.raises(UserError, match="everything is as it was before"):
        install(machine)
    assert machine.read_all() == before


@pytest.mark.requirement("R1", "R24")
@pytest.mark.parametrize("break_it", [break_guard, break_service])
def test_an_installation_that_fails_after_the_lock_stays_locked_and_says_how_to_go_on(
    machine: ScratchMachine, break_it: Callable[[ScratchMachine], None]
) -> None:
    before = machine.read_all()
    break_it(machine)
    with pytest.raises(UserError, match="stays locked") as caught:
        install(machine)
    assert "Run the same command again" in caught.value.next_step
    assert machine.platform.kernel.is_locked() is True
    assert find_interruption(machine.platform) is not None
    machine.set_state(broken=[])
    install(machine)
    assert find_interruption(machine.platform) is None
    uninstall(machine.platform, say=say_nothing)
    assert machine.read_all() == before


def test_a_core_that_is_refused_undoes_the_installation(machine: ScratchMachine) -> None:
    before = machine.read_all()

    def refuse() -> bool:
        raise UserError("The tunnel program is not installed", "its SHA-256 is another", "Get it again.")

    with pytest.raises(UserError, match="its SHA-256 is another"):
        install_clone(machine.platform, PAYLOAD, ACTING, say=say_nothing, bring=refuse)
    assert machine.read_all() == before


def test_a_new_core_makes_a_running_service_start_again(machine: ScratchMachine) -> None:
    install(machine)
    machine.set_state(restarted=[])
    install_clone(machine.platform, PAYLOAD, ACTING, say=say_nothing, bring=lambda: True)
    assert SERVICE_UNIT in machine.store.read()["restarted"]


@pytest.mark.requirement("R3")
def test_nothing_is_opened_under_a_service_that_does_not_stop(machine: ScratchMachine) -> None:
    before = machine.read_all()
    install(machine)
    machine.set_state(stuck=[SERVICE_UNIT])
    with pytest.raises(UndoError):
        uninstall(machine.platform, say=say_nothing)
    assert machine.platform.kernel.is_locked() is True
    machine.set_state(stuck=[])
    uninstall(machine.platform, say=say_nothing)
    assert machine.read_all() == before


def test_a_damaged_journal_is_refused_and_nothing_is_touched(machine: ScratchMachine) -> None:
    install(machine)
    path = machine.platform.layout.install_journal
    path.write_bytes(path.read_bytes()[:-20])
    before = machine.read_all()
    with pytest.raises(JournalError):
        uninstall(machine.platform, say=say_nothing)
    with pytest.raises(JournalError):
        install(machine)
    assert machine.read_all() == before


def test_after_a_lost_journal_an_installation_knows_its_own_files(machine: ScratchMachine) -> None:
    install(machine)
    machine.platform.layout.install_journal.unlink()
    install(machine)
    uninstall(machine.platform, say=say_nothing)
    assert machine.platform.kernel.is_locked() is False
    assert not machine.boots_locked
    assert [file.path for file in PAYLOAD if os.path.lexists(machine.root / file.path.lstrip("/"))] == []


def test_without_an_installation_there_is_nothing_to_remove(machine: ScratchMachine) -> None:
    before = machine.read_all()
    assert not uninstall(machine.platform, say=say_nothing)
    assert machine.read_all() == before


def test_a_file_is_never_written_through_a_link(machine: ScratchMachine, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("keep")
    link = machine.root / "usr/bin/link"
    link.symlink_to(victim)
    write_file(link, b"ours", mode=0o755, uid=0, gid=0)
    assert victim.read_text() == "keep"
    assert not link.is_symlink()
    # Nor through a link under the temporary name.
    (machine.root / "usr/bin/.link.psiphon-new").symlink_to(victim)
    write_file(link, b"again", mode=0o755, uid=0, gid=0)
    assert victim.read_text() == "keep"
    assert link.read_bytes() == b"again"


def test_a_change_comes_back_from_the_journal_as_it_was(machine: ScratchMachine) -> None:
    change = FileWritten(path="/usr/bin/psiphon-vpn", mode=0o755, content=b"x").observe(machine.platform)
    assert change.previous is not None
    assert change.previous.target == "/opt/other/psiphon"
    assert restore_change(change.store()) == change
    unit = UnitStarted(unit=GUARD_UNIT, stays=True)
    assert restore_change(unit.store()) == unit
    with pytest.raises(ValueError, match="unknown kind"):
        restore_change({"kind": "format-disk"})
