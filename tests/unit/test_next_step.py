# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Every command gives the one right next step in every situation: what it tells the user to type is what helps."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
from click.testing import CliRunner
from tests.cores import make_elf, make_manifest, pin
from tests.scratch_machine import ScratchMachine, make_machine
from tests.server_lists import make_key, make_list, make_test_profile
from tests.unit.test_install import unpack

from psiphon_vpn.accounts import User
from psiphon_vpn.cli import managing, provisions, setting_up, starting
from psiphon_vpn.cli.main import cli
from psiphon_vpn.errors import UserError
from psiphon_vpn.servers.bundle import make_bundle
from psiphon_vpn.system.journal import Journal
from psiphon_vpn.system.layout import SERVICE_UNIT, Layout
from psiphon_vpn.system.released import write_record
from psiphon_vpn.system.stage import Stage

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("quick_disk")]  # needs root: it checks real owners

KEY = make_key()
PROFILE = make_test_profile(KEY)
CORE, LIST = make_elf(b"core"), make_list(5, KEY)


class _Owner:
    uid = gid = 990


# -- situations -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def serve(layout: Layout, **status: Any) -> Iterator[None]:
    """A service that answers each request with the same status, and does nothing else."""
    reported = {"state": "LOCKED", "locked": True, "intent": "connected", "reason": "", "next_step": None, **status}
    layout.runtime_dir.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(layout.runtime_dir / "control.sock"))
        listening.listen()

        def answer() -> None:
            while True:
                try:
                    connection, _address = listening.accept()
                except OSError:
                    return
                with connection, connection.makefile("rw") as lines:
                    for line in lines:
                        lines.write(json.dumps({"id": json.loads(line)["id"], "result": reported}) + "\n")
                        lines.flush()

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


@contextlib.contextmanager
def here(root: Path) -> Iterator[None]:
    """Let commands use the tree below `root` as this machine."""
    places: Any = Layout.__init__.__kwdefaults__
    before, places["root"] = places["root"], root
    try:
        yield
    finally:
        places["root"] = before


def set_up(machine: ScratchMachine, *, core: bytes | None = CORE, server_list: bytes | None = LIST) -> None:
    """Set the machine up, with these parts in a bundle; without any it is locked and has neither."""
    argv = ["--offline"]
    if core is not None or server_list is not None:
        path = machine.root / "bundle"
        path.write_bytes(make_bundle(core=core, server_list=server_list))
        argv += ["--bundle", str(path)]
    with here(Path("/")):  # the installed files have the paths of a real machine
        result = CliRunner().invoke(cli, ["setup", "--yes", *argv])
    assert result.exit_code == 0, result.output


Situation = Callable[[ScratchMachine], contextlib.AbstractContextManager[None]]


@contextlib.contextmanager
def not_set_up(machine: ScratchMachine) -> Iterator[None]:
    yield


@contextlib.contextmanager
def no_program(machine: ScratchMachine) -> Iterator[None]:
    """From a clone, so no command is installed."""
    machine.platform.layout.command.unlink()
    yield


@contextlib.contextmanager
def half_set_up(machine: ScratchMachine) -> Iterator[None]:
    set_up(machine)
    journal = Journal(machine.platform)
    record = journal.read()
    assert record is not None
    journal.write(replace(record, stage=Stage.INSTALLING))
    yield


@contextlib.contextmanager
def half_removed(machine: ScratchMachine) -> Iterator[None]:
    set_up(machine)
    journal = Journal(machine.platform)
    record = journal.read()
    assert record is not None
    journal.write(replace(record, stage=Stage.REMOVING))
    yield


@contextlib.contextmanager
def without_core(machine: ScratchMachine) -> Iterator[None]:
    set_up(machine, core=None, server_list=None)
    step = "Bring a file that has it: sudo psiphon-vpn setup --bundle FILE"
    with serve(machine.platform.layout, reason="no tunnel program is installed", next_step=step):
        yield


@contextlib.contextmanager
def without_list(machine: ScratchMachine) -> Iterator[None]:
    set_up(machine, server_list=None)
    step = "Bring a list from another computer: sudo psiphon-vpn servers import FILE"
    with serve(machine.platform.layout, state="CONNECTING", reason="no Psiphon server is known", next_step=step):
        yield


@contextlib.contextmanager
def dead(machine: ScratchMachine) -> Iterator[None]:
    set_up(machine)
    yield


@contextlib.contextmanager
def released(machine: ScratchMachine) -> Iterator[None]:
    set_up(machine)
    write_record(machine.platform.layout, by="0")
    yield


@contextlib.contextmanager
def stopped(machine: ScratchMachine) -> Iterator[None]:
    set_up(machine)
    with serve(machine.platform.layout, intent="stopped", next_step="To connect again: sudo psiphon-vpn start"):
        yield


@contextlib.contextmanager
def connecting(machine: ScratchMachine) -> Iterator[None]:
    set_up(machine)
    with serve(machine.platform.layout, state="CONNECTING", reason="looking for a Psiphon server"):
        yield


@contextlib.contextmanager
def without_unit(machine: ScratchMachine) -> Iterator[None]:
    set_up(machine)
    (machine.platform.layout.unit_dir / SERVICE_UNIT).unlink()
    yield


# -- the table --------------------------------------------------------------------------------------------------------

SETUP: Final = "Set it up: sudo psiphon-vpn setup"
INSTALL: Final = "Install the service: sudo ./Psiphon-Linux-VPN-Service-Setup.sh install"
FINISH: Final = "Finish it: sudo psiphon-vpn setup. Or undo it: sudo psiphon-vpn uninstall"
REMOVE: Final = "Finish it: sudo psiphon-vpn uninstall. Or set it up again: sudo psiphon-vpn setup"
START: Final = "Start it: sudo psiphon-vpn start. Why it ended: sudo psiphon-vpn log"
LOCK: Final = "Lock and connect again: sudo psiphon-vpn start"
AGAIN: Final = "Install it again, which opens nothing: psiphon-vpn help stranded says how"
BUNDLE: Final = "sudo psiphon-vpn setup --bundle FILE"
IMPORT: Final = "sudo psiphon-vpn servers import FILE"
CONNECT: Final = "Connect: sudo psiphon-vpn start --wait"
WAIT: Final = "Wait for the tunnel: sudo psiphon-vpn start --wait"

SERVICE: Final = ("stop", "restart", "reload")
"""Commands that the service carries out."""
TUNNEL: Final = ("servers refresh", "update --via-tunnel --core-url https://127.0.0.1/core --yes")
"""Commands that need the open tunnel."""
SERVERS: Final = ("servers list", "region", "servers export new", "bundle new")
"""Commands that show or hand on what is there."""
CHANGES: Final = ("config set log_level=debug", "region best", "servers import FILE", "bridge allow br0 --yes")
"""Commands that change an installation."""
VIEWS: Final = ("config show", "config get log_level")
EVERY: Final = (*SERVICE, *TUNNEL, *SERVERS, *CHANGES, *VIEWS)

TABLE: Final[tuple[tuple[Situation, tuple[str, ...], str], ...]] = (
    (not_set_up, (*EVERY, "status", "start", "log", "release"), SETUP),
    (no_program, (*EVERY, "status", "start", "log", "release"), INSTALL),
    (half_set_up, (*SERVICE, *TUNNEL, "status"), FINISH),
    (half_removed, (*SERVICE, *TUNNEL, "status"), REMOVE),
    (without_core, (*SERVERS, *TUNNEL, "servers import FILE"), BUNDLE),
    (without_list, ("servers list", "region", "servers export new", *TUNNEL), IMPORT),
    (
        dead,
        (*SERVICE, *TUNNEL, "status", "config set log_level=debug", "region DE --anyway", "servers import NEW"),
        START,
    ),
    (released, (*SERVICE, *TUNNEL), LOCK),
    (stopped, TUNNEL, CONNECT),
    (connecting, TUNNEL, WAIT),
    (without_unit, (*SERVICE, *TUNNEL, "status"), AGAIN),
)
ADVICE: Final = (SETUP, INSTALL, FINISH, REMOVE, START, LOCK, AGAIN, BUNDLE, IMPORT, CONNECT, WAIT)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ScratchMachine]:
    """A machine with the package, which the commands use as this machine."""
    made = make_machine(tmp_path)
    unpack(made)
    (made.root / "run/systemd/system").mkdir(parents=True)
    for module in (managing, setting_up):
        monkeypatch.setattr(module, "open_platform", lambda: made.platform)
        monkeypatch.setattr(module, "find_removal", lambda: None)
    monkeypatch.setattr("psiphon_vpn.system.linux_platform.open_platform", lambda: made.platform)
    monkeypatch.setattr(starting, "find_sessions", lambda: ())
    monkeypatch.setattr(managing, "report_findings", lambda _platform: None)
    monkeypatch.setattr(starting, "survive_hangup", lambda: None)
    monkeypatch.setattr(setting_up, "await_tunnel", lambda _layout: "")
    monkeypatch.setattr(provisions, "find_profile", lambda _layout: PROFILE)
    monkeypatch.setattr("psiphon_vpn.servers.profile.load_profile", lambda _name, _layout: PROFILE)
    account = User(name="psiphon-user", uid=_Owner.uid, gid=_Owner.gid, login="/usr/sbin/nologin")
    monkeypatch.setattr("psiphon_vpn.editing.files.find_user", lambda _name: account)
    monkeypatch.setattr("psiphon_vpn.editing.files.find_group", lambda _name: account.gid)
    monkeypatch.setattr("psiphon_vpn.core.store.load_manifest", lambda: make_manifest(pin(CORE)))
    monkeypatch.setattr("psiphon_vpn.core.store.CoreStore.find_owner", lambda _store: _Owner)
    empty = subprocess.CompletedProcess([], 0, stdout="", stderr="")
    monkeypatch.setattr("psiphon_vpn.run.run", lambda _argv, **_options: empty)  # journalctl
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_bytes(LIST)
    (tmp_path / "NEW").write_bytes(make_list(6, KEY))
    with here(made.root):
        yield made


def run(machine: ScratchMachine, command: str) -> str:
    """The whole output of a command, in one line."""
    result = CliRunner().invoke(cli, ["--runtime-dir", str(machine.platform.layout.runtime_dir), *command.split()])
    if result.exception is not None and not isinstance(result.exception, UserError | SystemExit):
        raise result.exception
    error = str(result.exception) if isinstance(result.exception, UserError) else ""
    return " ".join(f"{result.output} {error}".split())


@pytest.mark.parametrize(("situation", "commands", "step"), TABLE, ids=[row[0].__name__ for row in TABLE])
def test_every_command_gives_the_one_right_next_step(
    machine: ScratchMachine, situation: Situation, commands: tuple[str, ...], step: str
) -> None:
    with situation(machine):
        said = {command: run(machine, command) for command in commands}
    wrong = {command: text for command, text in said.items() if step not in text}
    assert not wrong
    # One next step, not several.
    others = [other for other in ADVICE if other not in step and step not in other]
    assert not {command: text for command, text in said.items() if any(other in text for other in others)}
