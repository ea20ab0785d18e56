# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The configuration is replaced as a whole or not at all, and nothing else is ever written, followed or waited for."""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from psiphon_vpn.editing.files import Place, open_exclusively, read_file
from psiphon_vpn.errors import ConfigError, UserError
from psiphon_vpn.system.platform import Account

pytestmark = pytest.mark.requirement("R12")
SERVICE = Account(uid=4242, gid=4243)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="owners are real")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    directory = tmp_path / "etc"
    directory.mkdir(mode=0o755)
    path = directory / "config.toml"
    path.write_text("socks_port = 2000\n")
    path.chmod(0o600)
    account = SERVICE if os.geteuid() == 0 else None
    if account is not None:
        os.chown(path, account.uid, account.gid)
    return Place(path=path, lock=tmp_path / "lock", account=account, root_uid=os.geteuid())


def replace(place: Place, content: bytes = b"new = 1\n") -> None:
    with open_exclusively(place) as opened:
        opened.replace(content)


def describe(path: Path) -> tuple[int, int, int]:
    status = path.lstat()
    return status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)


def test_the_content_is_replaced_and_owner_and_mode_stay(place: Place) -> None:
    before = describe(place.path)
    replace(place)
    assert place.path.read_bytes() == b"new = 1\n"
    assert describe(place.path) == before
    assert os.listdir(place.path.parent) == ["config.toml"]


@pytest.mark.parametrize(("mode", "after"), [(0o640, 0o640), (0o4700, 0o600), (0o7700, 0o600), (0o400, 0o400)])
def test_only_bits_for_reading_and_writing_stay(place: Place, mode: int, after: int) -> None:
    place.path.chmod(mode)
    replace(place)
    assert describe(place.path)[2] == after


@needs_root
def test_a_new_file_belongs_to_the_service(place: Place) -> None:
    place.path.unlink()
    replace(place)
    assert describe(place.path) == (SERVICE.uid, SERVICE.gid, 0o600)


def test_a_link_in_the_place_of_the_file_is_neither_read_nor_followed_nor_replaced(
    place: Place, tmp_path: Path
) -> None:
    other = tmp_path / "shadow"
    other.write_text("secret")
    place.path.unlink()
    place.path.symlink_to(other)
    with pytest.raises(ConfigError, match="it is not a file"):
        read_file(place)
    with pytest.raises(ConfigError, match="it is not a file"):
        replace(place)
    assert other.read_text() == "secret"
    assert place.path.is_symlink()


def test_a_link_in_the_place_of_the_directory_is_not_followed(place: Place, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(place.path.parent)
    other = Place(path=tmp_path / "link" / "config.toml", lock=place.lock, root_uid=place.root_uid)
    with pytest.raises(ConfigError):
        read_file(other)


def test_another_name_of_the_file_keeps_what_it_had(place: Place, tmp_path: Path) -> None:
    os.link(place.path, tmp_path / "other name")
    replace(place)
    assert (tmp_path / "other name").read_text() == "socks_port = 2000\n"
    assert place.path.read_bytes() == b"new = 1\n"


@pytest.mark.parametrize("kind", ["fifo", "directory", "device"])
def test_what_is_no_file_is_refused_without_waiting(place: Place, kind: str) -> None:
    place.path.unlink()
    if kind == "fifo":
        os.mkfifo(place.path)
    elif kind == "directory":
        place.path.mkdir()
    elif os.geteuid() != 0:
        pytest.skip("only root makes devices")
    else:
        try:
            os.mknod(place.path, stat.S_IFCHR | 0o600, os.makedev(1, 5))
        except PermissionError:
            pytest.skip("no devices here")
    with pytest.raises(ConfigError):
        replace(place)


@pytest.mark.parametrize("name", [".config.toml.new"])
@pytest.mark.parametrize("kind", ["file", "link", "fifo", "hard link"])
def test_what_an_interrupted_run_left_behind_is_replaced_and_not_written_to(
    place: Place, tmp_path: Path, name: str, kind: str
) -> None:
    left, other = place.path.parent / name, tmp_path / "other"
    other.write_text("other")
    match kind:
        case "file":
            left.write_text("half")
        case "link":
            left.symlink_to(other)
        case "fifo":
            os.mkfifo(left)
        case _:
            os.link(other, left)
    replace(place)
    assert other.read_text() == "other"
    assert place.path.read_bytes() == b"new = 1\n"
    assert os.listdir(place.path.parent) == ["config.toml"]


@needs_root
def test_a_file_or_a_directory_of_others_is_refused(place: Place) -> None:
    os.chown(place.path, 5555, 0)
    with pytest.raises(ConfigError, match="belongs to another user"):
        replace(place)
    os.chown(place.path, SERVICE.uid, SERVICE.gid)
    for mode in (0o775, 0o757):
        place.path.parent.chmod(mode)
        with pytest.raises(ConfigError, match="other users could put another file there"):
            replace(place)
    place.path.parent.chmod(0o755)
    os.chown(place.path.parent, SERVICE.uid, SERVICE.gid)
    with pytest.raises(ConfigError, match="other users could put another file there"):
        read_file(place)


@needs_root
def test_the_file_is_never_one_that_others_could_read(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    for name in ("fchmod", "fchown", "fsync"):
        real = getattr(os, name)

        def watched(descriptor: int, *more: Any, real: Any = real) -> None:
            status = os.fstat(descriptor)
            if stat.S_ISREG(status.st_mode):
                seen.append((status.st_uid, stat.S_IMODE(status.st_mode)))
            real(descriptor, *more)

        monkeypatch.setattr(os, name, watched)
    old = os.umask(0)
    try:
        replace(place)
    finally:
        os.umask(old)
    assert seen
    assert all(mode & 0o077 == 0 for _uid, mode in seen)


@pytest.mark.parametrize("call", ["open", "fsync", "fchmod", "rename", "unlink"])
def test_after_a_failure_of_any_step_the_old_or_the_new_file_is_there_whole(
    place: Place, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    old = place.path.read_bytes()
    for number in range(8):
        count = iter(range(100))
        real = getattr(os, call)

        def failing(*args: Any, real: Any = real, count: Any = count, number: int = number, **more: Any) -> Any:
            if next(count) == number:
                raise OSError(errno.ENOSPC, "no space")
            return real(*args, **more)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, failing)
            try:
                replace(place)
            except (UserError, OSError):
                assert place.path.read_bytes() in {old, b"new = 1\n"}
            else:
                assert place.path.read_bytes() == b"new = 1\n"
        replace(place, old)
        assert os.listdir(place.path.parent) == ["config.toml"]


def test_two_changes_at_once_do_not_undo_each_other(place: Place) -> None:
    with open_exclusively(place) as opened:
        caught: list[UserError] = []

        def second() -> None:
            try:
                with open_exclusively(place, patience=0) as opened:
                    opened.replace(b"second\n")
            except UserError as error:
                caught.append(error)

        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        opened.replace(b"first\n")
    assert "another command is changing it" in str(caught[0])
    assert place.path.read_bytes() == b"first\n"
    replace(place, b"second\n")


@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_the_lock_is_no_way_to_another_file(place: Place, tmp_path: Path, kind: str) -> None:
    if kind == "link":
        place.lock.symlink_to(tmp_path / "made")
        with pytest.raises(UserError):
            replace(place)
        assert not (tmp_path / "made").exists()
    else:
        os.mkfifo(place.lock)
        replace(place)


@needs_root
def test_psiphon_user_cannot_hold_the_lock(place: Place) -> None:
    replace(place)
    assert describe(place.lock) == (0, os.getegid(), 0o600)
