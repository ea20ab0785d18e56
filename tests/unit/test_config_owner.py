# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The configuration belongs to the service: anything else is reported, and repaired where nobody else can write."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from psiphon_vpn.config import load_settings
from psiphon_vpn.errors import ConfigError
from psiphon_vpn.system.config_owner import restore_owner
from psiphon_vpn.system.platform import Account

pytestmark = [pytest.mark.lab, pytest.mark.requirement("R12")]  # owners are real

SERVICE = Account(uid=4242, gid=4243)


@pytest.fixture
def path() -> Iterator[Path]:
    """A configuration as root's editor leaves it, in a directory that everybody may enter."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        Path(directory).chmod(0o755)
        path = Path(directory) / "psiphon-vpn" / "config.toml"
        path.parent.mkdir(mode=0o755)
        path.write_text("socks_port = 1082\n")
        path.chmod(0o600)
        yield path


def as_service(work: Callable[[], object]) -> str:
    """The result of work that runs as the service."""
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        text = "died"
        try:
            os.setgroups([])
            os.setgid(SERVICE.gid)
            os.setuid(SERVICE.uid)
            try:
                text = f"read {work()}"
            except ConfigError as error:
                text = str(error)
        finally:
            os.write(writer, text.encode())
            os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    with os.fdopen(reader) as file:
        return file.read()


def read_port(path: Path) -> object:
    return load_settings(path).socks_port


def test_a_root_owned_file_is_named_as_such_with_what_helps_and_repaired(path: Path) -> None:
    said = as_service(lambda: read_port(path))
    assert "it belongs to root, and the service, which runs as psiphon-user, may not read it" in said
    assert f"sudo chown psiphon-user:psiphon-group {path}" in said
    assert restore_owner(path, SERVICE)
    assert as_service(lambda: read_port(path)) == "read 1082"
    found = path.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (SERVICE.uid, SERVICE.gid, 0o600)
    assert not restore_owner(path, SERVICE)


def test_a_directory_that_the_service_may_not_enter_is_named_and_opened(path: Path) -> None:
    assert restore_owner(path, SERVICE)
    path.parent.chmod(0o700)
    said = as_service(lambda: read_port(path))
    assert f"may not enter the directory {path.parent}" in said
    assert f"sudo chmod 755 {path.parent}" in said
    assert restore_owner(path, SERVICE)
    assert as_service(lambda: read_port(path)) == "read 1082"


def test_a_mode_that_keeps_its_owner_out_is_not_called_a_matter_of_owners(path: Path) -> None:
    assert restore_owner(path, SERVICE)
    path.chmod(0)
    said = as_service(lambda: read_port(path))
    assert "belongs to" not in said
    assert "its mode" in said
    assert restore_owner(path, SERVICE)
    assert as_service(lambda: read_port(path)) == "read 1082"


def test_the_way_out_that_is_named_for_a_strangers_file_leads_out(path: Path) -> None:
    os.chown(path, 5555, 5555)
    path.chmod(0o644)
    said = as_service(lambda: read_port(path))
    assert "belongs to another user" in said
    assert f"sudo chown psiphon-user:psiphon-group {path}; sudo chmod 600 {path}" in said


@pytest.mark.parametrize("case", ["stranger", "writable", "link", "pipe", "directory", "open directory", "none"])
def test_what_somebody_else_can_have_written_is_not_repaired(path: Path, case: str) -> None:
    victim = path.parent.parent / "victim"
    victim.write_text("root's")
    match case:
        case "stranger":
            os.chown(path, 5555, 5555)
        case "writable":
            path.chmod(0o666)
        case "open directory":
            path.parent.chmod(0o777)
        case _:
            path.unlink()
            if case == "link":
                path.symlink_to(victim)
            elif case == "pipe":
                os.mkfifo(path)
            elif case == "directory":
                path.mkdir()
    before = path.lstat() if case != "none" else None
    assert not restore_owner(path, SERVICE)
    assert before is None or (path.lstat().st_uid, path.lstat().st_mode) == (before.st_uid, before.st_mode)
    assert victim.stat().st_uid == 0
