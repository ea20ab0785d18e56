# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""`release` and the return to the lock: the order, what is left, and what no record can do."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from tests.scratch_machine import ACTING, PAYLOAD, ScratchMachine, make_machine
from tests.unit.test_install import say_nothing, unpack

from psiphon_vpn.cli import managing, setting_up, starting, view
from psiphon_vpn.cli.main import cli, run_cli
from psiphon_vpn.cli.stranded import render_stranded
from psiphon_vpn.errors import EXIT_FAILURE, EXIT_NOT_ROOT, UserError
from psiphon_vpn.linux import lockstate
from psiphon_vpn.linux.lockstate import LockState
from psiphon_vpn.network_managers.networkmanager import MANAGER
from psiphon_vpn.policy import names
from psiphon_vpn.run import CommandError
from psiphon_vpn.system import last_resort, released
from psiphon_vpn.system.findings import find_name_taker, find_ownerless_links, match_other_firewalls
from psiphon_vpn.system.install import configure_package, install_clone, set_up, uninstall
from psiphon_vpn.system.layout import GUARD_UNIT, SERVICE_UNIT, Layout
from psiphon_vpn.system.release import WORD, release, start
from psiphon_vpn.system.sessions import RemoteSession, RemoteSessionsError

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("quick_disk")]  # needs root: it checks real owners


@pytest.fixture
def installed(tmp_path: Path) -> ScratchMachine:
    machine = make_machine(tmp_path)
    install_clone(machine.platform, PAYLOAD, ACTING, say=say_nothing)
    return machine


@pytest.mark.requirement("R3")
def test_release_opens_stops_what_runs_and_says_so(installed: ScratchMachine) -> None:
    release(installed.platform, by="1000")
    state = installed.store.read()
    assert not state["tables"]
    assert not state["guard"]
    assert not state["ways"]
    assert not {GUARD_UNIT, SERVICE_UNIT} & set(state["active"])
    assert installed.boots_locked
    found = released.read_record(installed.platform.layout)
    assert found is not None
    assert found.by == "1000"


@pytest.mark.requirement("R8")
@pytest.mark.parametrize("close", [True, False])
def test_an_installation_says_which_numbers_it_took_where_they_are_not_the_usual_ones(
    installed: ScratchMachine, close: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(setting_up, "open_platform", lambda: installed.platform)
    monkeypatch.setattr(managing, "report_findings", lambda _platform: None)
    monkeypatch.setattr(starting, "survive_hangup", lambda: None)
    monkeypatch.setattr(installed.platform.manager, "is_running", lambda: close)
    for usual, said in ((573, True), (990, False)):
        monkeypatch.setattr(names, "ACCOUNT_NUMBER", usual)
        assert setting_up.system_configure(cut_remote=True) == 0
        assert ("990 (user) and 990 (group): 573 was not free" in capsys.readouterr().err) is said


@pytest.mark.requirement("R3")
def test_start_locks_first_and_forgets_the_release(installed: ScratchMachine) -> None:
    before = installed.read_all()
    release(installed.platform, by="0")
    start(installed.platform)  # the stand-in refuses to start the service on an open machine
    after = installed.read_all()
    before["active"], after["active"] = set(before["active"]), set(after["active"])
    assert after == before
    assert released.read_record(installed.platform.layout) is None


def test_while_released_names_are_asked_of_the_networks_own_resolvers(installed: ScratchMachine) -> None:
    layout = installed.platform.layout
    mask = installed.root / "run/systemd/resolved.conf.d" / layout.resolved_dropin.name
    release(installed.platform, by="0")
    assert "DNS=" not in mask.read_text()
    assert installed.store.read()["restarted"][-1] == released.RESOLVED_UNIT
    start(installed.platform)
    assert not mask.exists()


def test_while_released_networkmanager_hands_out_the_networks_own_resolvers(installed: ScratchMachine) -> None:
    unit, (mask,) = MANAGER.units[0], (installed.platform.layout.locate(path) for path in MANAGER.released_files)
    (installed.root / "run/NetworkManager").mkdir()
    installed.set_state(active=[*installed.store.read()["active"], unit])
    release(installed.platform, by="0")
    assert "global-dns" not in mask.read_text()
    assert "uri=\ninterval=0" in mask.read_text()
    assert unit in installed.store.read()["restarted"]
    start(installed.platform)
    assert not mask.exists()


@pytest.mark.requirement("R3")
def test_a_service_that_does_not_stop_is_not_released(installed: ScratchMachine) -> None:
    installed.set_state(stuck=[SERVICE_UNIT])
    with pytest.raises(CommandError):
        release(installed.platform, by="0")
    assert installed.platform.kernel.is_locked() is True
    assert released.read_record(installed.platform.layout) is None


@pytest.mark.requirement("R3")
def test_a_guard_that_does_not_stop_leaves_the_machine_locked(installed: ScratchMachine) -> None:
    installed.set_state(stuck=[GUARD_UNIT])
    with pytest.raises(CommandError):
        release(installed.platform, by="0")
    assert installed.platform.kernel.is_locked() is True


@pytest.mark.requirement("R3", "R14")
def test_an_upgrade_of_a_released_machine_locks_it_and_forgets_the_release(installed: ScratchMachine) -> None:
    release(installed.platform, by="0")
    configure_package(installed.platform, ACTING, say=say_nothing, close=True)
    assert installed.platform.kernel.is_locked() is True
    assert released.read_record(installed.platform.layout) is None


def test_a_released_machine_can_be_uninstalled(tmp_path: Path) -> None:
    machine = make_machine(tmp_path)
    before = machine.read_all()
    install_clone(machine.platform, PAYLOAD, ACTING, say=say_nothing)
    release(machine.platform, by="0")
    uninstall(machine.platform, say=say_nothing)
    assert machine.read_all()["tree"] == before["tree"]


def status_of(layout: Layout, monkeypatch: pytest.MonkeyPatch, *, locked: bool | None) -> dict[str, Any]:
    """The output of `status` without a daemon."""
    monkeypatch.setattr(lockstate, "read_lock_state", lambda: LockState(locked=locked, sentence="the kernel's word"))
    return dict(view.find_status(layout.runtime_dir, layout=layout))


@pytest.mark.requirement("R3")
def test_status_of_a_released_machine_is_released_in_red(
    installed: ScratchMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    release(installed.platform, by="1000")
    status = status_of(installed.platform.layout, monkeypatch, locked=False)
    assert (status["state"], status["locked"]) == (view.RELEASED, False)
    assert "psiphon-vpn start" in str(status["next_step"])
    assert view.render_text(status).startswith(click.style("RELEASED", fg="red", bold=True, reset=False))
    assert view.find_exit_code(status) == EXIT_FAILURE


@pytest.mark.parametrize("locked", [False, None])
def test_status_of_a_machine_that_was_never_set_up_says_so_in_red(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locked: bool | None
) -> None:
    machine = make_machine(tmp_path)
    unpack(machine)
    status = status_of(machine.platform.layout, monkeypatch, locked=locked)
    assert status["state"] == view.NOT_SET_UP
    assert status["next_step"] == "Set it up: sudo psiphon-vpn setup"
    assert view.find_exit_code(status) == EXIT_FAILURE
    assert click.unstyle(view.render_text(status)).startswith("NOT SET UP.")
    assert view.render_text(status).startswith(click.style("NOT SET UP.", fg="red", bold=True)[:-4])
    missing = {"frame_guard": {"state": "missing", "detail": "sudo systemctl reload-or-restart psiphon-guard"}}
    shown = view.render_text({**status, "layers": missing})
    assert "psiphon-guard" not in shown, "there is no such unit to reload"
    assert "psiphon-guard" in view.render_text({**status, "layers": missing, "locked": True}), "half done"


@pytest.mark.parametrize("locked", [True, False, None])
def test_status_of_a_half_done_set_up_says_how_to_finish_and_never_that_all_is_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locked: bool | None
) -> None:
    machine = make_machine(tmp_path)
    unpack(machine)
    machine.break_unit(SERVICE_UNIT)
    with pytest.raises(UserError):
        set_up(machine.platform, ACTING, say=say_nothing)
    status = status_of(machine.platform.layout, monkeypatch, locked=locked)
    assert (status["state"], status["locked"]) == (view.NOT_SET_UP, locked)
    assert "sudo psiphon-vpn setup" in str(status["next_step"])
    assert view.find_exit_code(status) == EXIT_FAILURE
    assert click.unstyle(view.render_text(status)).startswith("NOT SET UP")


@pytest.mark.requirement("R3")
def test_start_locks_nothing_on_a_machine_that_was_never_set_up(tmp_path: Path) -> None:
    machine = make_machine(tmp_path)
    unpack(machine)
    before = machine.read_all()
    with pytest.raises(UserError, match="sudo psiphon-vpn setup"):
        starting.start_if_stopped(machine.platform, cut_remote=True)
    assert machine.read_all() == before


@pytest.mark.requirement("R1")
def test_a_stale_record_says_nothing_about_a_machine_that_is_locked(
    installed: ScratchMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    released.write_record(installed.platform.layout, by="0")
    for locked, state in ((True, "LOCKED"), (None, "UNKNOWN")):
        assert status_of(installed.platform.layout, monkeypatch, locked=locked)["state"] == state


@pytest.mark.parametrize("text", ["", "{", "[]", '{"since": 1}', "\x00" * 9000])
def test_an_odd_record_is_ignored(installed: ScratchMachine, text: str) -> None:
    installed.platform.layout.release_record.write_text(text)
    assert released.read_record(installed.platform.layout) is None


def test_a_record_that_is_not_roots_is_ignored(installed: ScratchMachine) -> None:
    path = installed.platform.layout.release_record
    path.write_text(json.dumps({"since": "now", "by": "0"}))
    os.chown(path, 1234, 1234)
    assert released.read_record(installed.platform.layout) is None


# -- the commands ---------------------------------------------------------------------------------------------------


@pytest.fixture
def commands(installed: ScratchMachine, monkeypatch: pytest.MonkeyPatch) -> ScratchMachine:
    """The commands, on the scratch machine."""
    monkeypatch.setattr(managing, "open_platform", lambda: installed.platform)
    monkeypatch.setattr(setting_up, "open_platform", lambda: installed.platform)
    monkeypatch.setattr(managing, "find_removal", lambda: None)
    monkeypatch.setattr(setting_up, "find_removal", lambda: None)
    monkeypatch.setattr(starting, "find_sessions", lambda: ())
    monkeypatch.setattr(managing, "find_other_firewalls", lambda _manager: ())
    monkeypatch.setattr(managing, "find_ownerless_links", lambda: ())
    monkeypatch.setattr(managing, "describe_refused_logins", lambda: ())
    monkeypatch.setattr(starting, "survive_hangup", lambda: None)
    return installed


@pytest.mark.requirement("R3")
@pytest.mark.parametrize("word", ["", "yes", "y", "RELEASE", "releas"])
def test_release_wants_its_word(commands: ScratchMachine, word: str) -> None:
    result = CliRunner().invoke(cli, ["release"], input=f"{word}\n")
    assert isinstance(result.exception, UserError)
    assert commands.platform.kernel.is_locked() is True


def test_release_with_its_word_opens(commands: ScratchMachine) -> None:
    result = CliRunner().invoke(cli, ["release"], input=f"{WORD}\n")
    assert result.exception is None
    assert commands.platform.kernel.is_locked() is False


def test_uninstall_asks_and_no_is_no(commands: ScratchMachine) -> None:
    before = commands.read_all()
    assert CliRunner().invoke(cli, ["uninstall"], input="n\n").exit_code != 0
    assert commands.read_all() == before
    assert CliRunner().invoke(cli, ["uninstall", "--yes"]).exit_code == 0
    assert commands.platform.kernel.is_locked() is False


def test_a_packages_files_are_the_package_managers_to_remove(
    commands: ScratchMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (managing, setting_up):
        monkeypatch.setattr(module, "find_removal", lambda: "apt remove psiphon-vpn")
    error = CliRunner().invoke(cli, ["install", "--yes"]).exception
    assert isinstance(error, UserError)
    assert "apt remove psiphon-vpn" in str(error)
    # The set-up is undone; the program stays, and the command says which package manager removes it.
    done = CliRunner().invoke(cli, ["uninstall", "--yes"])
    assert done.exit_code == 0
    assert "apt remove psiphon-vpn" in done.stderr
    assert commands.platform.kernel.is_locked() is False


def connect_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "find_sessions", lambda: (RemoteSession(peer="203.0.113.9", how="SSH"),))


def test_a_start_that_would_cut_a_remote_session_wants_to_hear_that_it_may(
    commands: ScratchMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    release(commands.platform, by="0")
    connect_from_outside(monkeypatch)
    with pytest.raises(RemoteSessionsError):
        starting.start_if_stopped(commands.platform, cut_remote=False)
    assert commands.platform.kernel.is_locked() is False
    assert starting.start_if_stopped(commands.platform, cut_remote=True)
    assert commands.platform.kernel.is_locked() is True
    # Locked already, so nobody is cut off.
    assert not starting.start_if_stopped(commands.platform, cut_remote=False)


def test_an_installation_over_a_remote_session_changes_nothing_until_it_hears_that_it_may(
    commands: ScratchMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    uninstall(commands.platform, say=say_nothing)
    before = commands.read_all()
    connect_from_outside(monkeypatch)
    monkeypatch.setattr("psiphon_vpn.system.payload.collect_payload", lambda _commands: PAYLOAD)
    assert isinstance(CliRunner().invoke(cli, ["install", "--yes"]).exception, RemoteSessionsError)
    assert commands.read_all() == before
    result = CliRunner().invoke(cli, ["install", "--yes", "--offline", "--yes-cut-remote-sessions"])
    assert (result.exception, result.exit_code) == (None, 0)
    assert commands.platform.kernel.is_locked() is True


def test_a_package_over_a_remote_session_says_when_it_closes_and_how_to_close_it(
    commands: ScratchMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    release(commands.platform, by="0")
    connect_from_outside(monkeypatch)
    result = CliRunner().invoke(cli, ["system-configure"])
    assert result.exit_code == 0
    assert "next boot" in result.output
    assert "start --yes-cut-remote-sessions" in result.output
    assert commands.platform.kernel.is_locked() is False
    assert commands.boots_locked


@pytest.mark.parametrize(
    "argv", [["install"], ["uninstall"], ["release"], ["start"], ["system-configure"], ["system-deconfigure"]]
)
@pytest.mark.requirement("R21")
def test_whoever_is_not_root_gets_a_sentence_and_code_77(
    argv: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert run_cli(argv) == EXIT_NOT_ROOT
    assert "sudo" in capsys.readouterr().err


# -- when the program is damaged ---------------------------------------------------------------------------------------

_WITHOUT = """
import sys
for name in ("click", "rich", "httpx"):
    sys.modules[name] = None
sys.argv = ["psiphon-vpn", *sys.argv[1:]]
from psiphon_vpn.__main__ import main
main()
"""


def test_without_its_packages_the_program_still_shows_its_status_and_knows_how_to_remove_itself(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", _WITHOUT]
    environment = {"PYTHONPATH": str(ROOT / "src"), "PATH": os.environ["PATH"]}
    done = subprocess.run([*argv, "log"], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 70
    assert "psiphon-vpn uninstall" in done.stderr
    done = subprocess.run(
        [*argv, "--runtime-dir", str(tmp_path), "status"], capture_output=True, text=True, check=False, env=environment
    )
    assert "the service is not running" in done.stdout
    assert "Traceback" not in done.stderr
    # It gets as far as the question; without an answer it does nothing.
    asked = subprocess.run(
        [*argv, "uninstall"], capture_output=True, text=True, check=False, env=environment, stdin=subprocess.DEVNULL
    )
    assert asked.returncode == 1
    assert "Go on?" in asked.stderr


def test_the_last_resort_removes_everything(installed: ScratchMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(last_resort, "open_platform", lambda: installed.platform)
    monkeypatch.setattr(last_resort, "find_removal", lambda: None)
    monkeypatch.setattr(signal, "signal", lambda *_arguments: None)
    assert last_resort.run(["uninstall", "--yes"], cause="no click") == 0
    assert installed.platform.kernel.is_locked() is False
    assert not installed.platform.layout.data_dir.exists()


# -- words ------------------------------------------------------------------------------------------------------------


def test_the_page_for_the_stranded_is_the_same_in_the_documents_and_in_the_program(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_cli(["help", "stranded"]) == 0
    shown = capsys.readouterr().out
    assert shown == render_stranded()
    assert (ROOT / "docs/stranded.md").read_text() == shown


def test_every_command_on_the_page_for_the_stranded_exists() -> None:
    named = set(re.findall(r"(?:sudo |`)psiphon-vpn ([a-z]+)", render_stranded()))
    assert {"status", "update", "release", "uninstall", "start", "setup"} <= named
    assert named - set(cli.commands) <= {"diagnose"}


def test_other_firewalls_are_known_by_what_runs_and_by_what_they_left_in_the_kernel() -> None:
    listing = "table inet firewalld\ntable ip filter {\n\tchain ufw-user-input {\n\t}\n\tchain DOCKER {\n\t}\n}\n"
    assert [found.name for found in match_other_firewalls((), listing)] == ["firewalld", "ufw", "docker"]
    assert [found.name for found in match_other_firewalls({"nftables.service"}, "")] == ["nftables.service"]
    guests = match_other_firewalls(
        {"libvirtd.service", "incus.service", "snap.lxd.daemon.service"}, "table inet netavark\n"
    )
    assert [found.name for found in guests] == ["libvirt", "LXD", "Incus", "podman"]
    assert all("DHCP" in found.meaning for found in guests)
    assert match_other_firewalls((), "table inet psiphon_filter\n\tchain output {\n") == ()
    assert all(found.meaning for found in match_other_firewalls((), listing))


def test_a_device_of_others_with_the_name_of_the_tunnels_is_reported_before_it_is_taken(tmp_path: Path) -> None:
    assert find_name_taker(64190, devices=tmp_path) is None
    device = tmp_path / names.TUN_NAME
    device.mkdir()
    for owner, uid in ((None, 64190), ("-1\n", 64190), ("1000\n", 64190), ("64190\n", None), ("what?", 64190)):
        if owner is not None:
            (device / "owner").write_text(owner)
        taker = find_name_taker(uid, devices=tmp_path)
        assert taker is not None, owner
        assert names.TUN_NAME in taker.name + taker.meaning
    (device / "owner").write_text("64190\n")
    assert find_name_taker(64190, devices=tmp_path) is None


def test_a_device_over_which_it_never_opens_is_reported_by_name() -> None:
    listing = (
        "5: ms0@eth0: <BROADCAST,MULTICAST,UP> mtu 1468 qdisc noqueue state UP mode DEFAULT group default\\    link\n"
    )
    (found,) = find_ownerless_links(listing=listing)
    assert found.name == "MACsec (ms0)"
    assert "stays closed" in found.meaning
    assert find_ownerless_links(listing="") == ()
