# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Desktop notifications, against a real bus and a stand-in for the desktop's service; and the user's unit."""

from __future__ import annotations

import configparser
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from tests.buses import run_bus, run_notifications
from tests.unit.test_cli import STATUS

from psiphon_vpn import client
from psiphon_vpn.cli.main import run_cli
from psiphon_vpn.cli.notify import Notifier, find_message
from psiphon_vpn.system.layout import Layout
from psiphon_vpn.system.units import NOTIFY_UNIT, render_notify_unit, render_session_dropin

TITLES: dict[str, dict[str, object]] = {
    "connected": {},
    "NOT LOCKED": {"locked": False},
    "help is needed": {"state": "FAILED"},
    "stopped and locked": {"state": "LOCKED", "intent": "stopped"},
    "locked, not connected": {"state": "LOCKED"},
    "does not run": {"reason_code": "daemon-down", "locked": None},
}


@pytest.mark.parametrize("title", TITLES)
def test_each_situation_has_its_title_and_what_matters_is_urgent(title: str) -> None:
    reported, _text, urgent = find_message(STATUS | TITLES[title])
    assert title in reported
    assert urgent == (title in {"NOT LOCKED", "help is needed", "does not run"})


def test_what_the_daemon_says_cannot_put_control_characters_on_the_desktop() -> None:
    _title, text, _urgent = find_message(STATUS | {"state": "LOCKED", "reason": "a\x1b[31mb\x00c"})
    assert text.isprintable()


def test_a_change_is_shown_once_and_in_the_place_of_what_was_shown_before(tmp_path: Path) -> None:
    with run_bus(tmp_path / "socket") as (address, _bus):
        notifier = Notifier(address)
        with run_notifications(address) as reported:
            assert notifier.show(STATUS)
            assert not notifier.show(STATUS)
            assert notifier.show(STATUS | {"state": "LOCKED"})
        assert not notifier.show(STATUS), "no desktop shows notifications any more"
    assert [(name, replaces, icon) for name, replaces, icon, *_rest in reported] == [
        ("psiphon-vpn", 0, "network-vpn"),
        ("psiphon-vpn", 1, "network-vpn"),
    ], "the second takes the place of the first"
    title, text, urgent = find_message(STATUS)
    assert reported[0][3:] == (title, text, [], {"urgency": ("y", 2 if urgent else 1)}, -1)


@pytest.mark.parametrize("address", ["", "nonsense", "tcp:host=127.0.0.1,port=1", "unix:path=/nowhere", "unix:guid=1"])
def test_a_bus_that_cannot_be_reached_is_said_once_and_ends_nothing(
    address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    notifier = Notifier(address)
    assert not notifier.show(STATUS)
    assert not notifier.show(STATUS)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("No notification can be shown: ")


@pytest.mark.requirement("R24")
def test_the_daemon_speaks_to_no_message_bus() -> None:
    code = "import sys; import psiphon_vpn.service.daemon; print('jeepney' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_without_a_session_there_is_one_line_that_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("DBUS_SESSION_BUS_ADDRESS", raising=False)
    assert run_cli(["notify"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.lab
def test_who_may_not_read_the_status_learns_who_may_and_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", "unix:path=/nowhere")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory, socket.socket(socket.AF_UNIX) as listener:
        Path(directory).chmod(0o755)
        listener.bind(f"{directory}/{client.SOCKET_NAME}")
        listener.listen()
        Path(directory, client.SOCKET_NAME).chmod(0o660)
        os.setegid(65534)
        os.seteuid(65534)
        try:
            codes = [run_cli(["--runtime-dir", directory, command]) for command in ("notify", "status")]
        finally:
            os.seteuid(0)
            os.setegid(0)
    assert codes == [77, 77]
    for line in capsys.readouterr().err.splitlines():
        assert "only root and the users that /etc/psiphon-vpn/readers names may" in line
        assert "sudo psiphon-vpn reload" in line


def test_the_units_of_the_session_run_our_command_as_the_user_and_are_well_formed(tmp_path: Path) -> None:
    unit = render_notify_unit()
    parsed = configparser.RawConfigParser(strict=True)
    parsed.optionxform = str  # type: ignore[method-assign,assignment]
    parsed.read_string(unit)
    assert parsed["Service"]["ExecStart"] == f"{Layout().command} notify"
    assert "User" not in parsed["Service"]
    # A user who may not read the status sees a failed unit, not one that ended well; a retry would not help.
    assert "SuccessExitStatus" not in parsed["Service"]
    assert parsed["Service"]["RestartPreventExitStatus"] == "77"
    # No link enables it, which an uninstallation would have to find: the drop-in wants it.
    assert "Install" not in parsed
    assert f"Wants={NOTIFY_UNIT}" in render_session_dropin()
    if shutil.which("systemd-analyze"):
        (tmp_path / NOTIFY_UNIT).write_text(unit.replace(f"{Layout().command}", "/bin/true"))
        said = subprocess.run(
            ["systemd-analyze", "--user", "--man=no", "verify", str(tmp_path / NOTIFY_UNIT)],
            check=False,
            capture_output=True,
            text=True,
            env={"XDG_RUNTIME_DIR": str(tmp_path), "PATH": "/usr/bin:/bin"},
        )
        assert NOTIFY_UNIT not in said.stderr, said.stderr
