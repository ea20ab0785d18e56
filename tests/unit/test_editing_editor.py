# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The editor runs as the user who called sudo, and its text is trusted no more than any other."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from psiphon_vpn.config_file import MAX_BYTES
from psiphon_vpn.editing.editor import Caller, edit_copy, find_caller
from psiphon_vpn.errors import UserError

pytestmark = [pytest.mark.lab, pytest.mark.requirement("R12", "R24")]  # needs root, to become another user
ALICE = 54321
SECRET = b'upstream_proxy = "http://u:hunter2@192.0.2.7:1"\n'


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory that everybody may enter, and only root may write to."""
    import tempfile

    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


def caller(script: str) -> Caller:
    command = ("/bin/sh", "-c", script, "editor")
    return Caller(uid=ALICE, gid=ALICE, command=command, environment={"PATH": "/usr/bin:/bin"})


def edit(
    place: Path, script: str, *, content: bytes = SECRET, again: Callable[[UserError], bool] | None = None
) -> bytes | None:
    return edit_copy(
        content,
        caller(script),
        check=lambda text: UserError("It is bad", "it says bad", "") if b"bad" in text else None,
        ask=again or (lambda _problem: False),
        place=place,
    )


def test_the_editor_is_the_callers_and_nobody_else_can_read_the_copy(place: Path) -> None:
    script = 'id -u > seen; id -G >> seen; umask >> seen; stat -c "%a %u" . "$1" >> seen; cat seen > "$1"'
    edited = edit(place, script)
    assert edited is not None
    assert edited.decode().split("\n")[:5] == [str(ALICE), str(ALICE), "0077", f"700 {ALICE}", f"600 {ALICE}"]


def test_what_the_editor_leaves_is_taken_and_nothing_stays_behind(place: Path) -> None:
    assert edit(place, 'cp "$1" "$1~"; mkdir -p a/b; echo x > a/b/c; ln -s / root; echo new = 1 > "$1"') == b"new = 1\n"
    assert os.listdir(place) == []
    assert edit(place, "true") == SECRET
    with pytest.raises(UserError):
        edit(place, 'echo half > "$1"; exit 3')
    assert os.listdir(place) == []


def test_a_bad_text_is_shown_and_edited_again_or_dropped(place: Path) -> None:
    asked: list[str] = []

    def again(problem: UserError) -> bool:
        asked.append(str(problem))
        return len(asked) < 3

    assert edit(place, 'echo bad >> "$1"', again=again) is None
    assert len(asked) == 3
    assert (
        edit(place, 'grep -q bad "$1" && echo good > "$1" || echo bad > "$1"', again=lambda _problem: True) == b"good\n"
    )


@pytest.mark.parametrize(
    "script",
    [
        'rm "$1"; ln -s /etc/shadow "$1"',
        'rm "$1"; ln -s "$PWD/other" "$1"; echo x > other',
        'rm "$1"; mkfifo "$1"',
        'rm "$1"; mkdir "$1"',
        'rm "$1"',
        'ln "$1" other',
        f'dd if=/dev/zero of="$1" bs={MAX_BYTES + 1} count=1 2>/dev/null',
        "kill -9 $$",
    ],
)
def test_whatever_the_editor_puts_there_nothing_of_roots_is_read(place: Path, script: str) -> None:
    with pytest.raises(UserError, match="Nothing was changed"):
        edit(place, script)
    assert os.listdir(place) == []


def test_a_file_of_another_user_is_not_read(place: Path) -> None:
    other = place / "shadow"
    other.write_bytes(b"root's\n")
    other.chmod(0o644)

    def swap(_text: bytes) -> UserError | None:
        # As a hostile user could if the kernel allowed it: fs.protected_hardlinks=0.
        (directory,) = (entry for entry in place.iterdir() if entry.is_dir())
        (directory / "config.toml").unlink()
        os.link(other, directory / "config.toml")
        return UserError("Again", "again", "")

    with pytest.raises(UserError, match="something else than an ordinary file"):
        edit_copy(b"", caller('echo x > "$1" 2>/dev/null || true'), check=swap, ask=lambda _problem: True, place=place)


@pytest.mark.parametrize(
    ("environment", "uid"),
    [
        ({"SUDO_UID": "54321", "SUDO_GID": "54322"}, 54321),
        ({}, None),
        ({"SUDO_UID": "0", "SUDO_GID": "0"}, None),
        ({"SUDO_UID": "54321", "SUDO_GID": "0"}, None),
        ({"SUDO_UID": "-1", "SUDO_GID": "1"}, None),
        ({"SUDO_UID": "x"}, None),
        ({"SUDO_UID": "4294967296", "SUDO_GID": "4294967296"}, None),
        ({"SUDO_UID": "54321"}, None),
        ({"PKEXEC_UID": "0"}, None),
        ({"DOAS_USER": "root"}, None),
        ({"DOAS_USER": "nobody-here"}, None),
    ],
)
def test_no_editor_is_ever_roots(environment: dict[str, str], uid: int | None) -> None:
    environment = environment | {"EDITOR": "vim -u NONE", "LD_PRELOAD": "/evil.so", "PATH": "/evil", "TERM": "x"}
    if uid is None:
        with pytest.raises(UserError, match="No editor was started"):
            find_caller(environment)
        return
    found = find_caller(environment)
    assert (found.uid, found.gid) == (uid, 54322)
    assert found.command == ("vim", "-u", "NONE")
    assert found.environment["TERM"] == "x"
    assert "LD_PRELOAD" not in found.environment
    assert "/evil" not in found.environment["PATH"]


def test_the_copy_is_the_callers_alone_from_its_first_moment(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = os.fchown

    def watched(descriptor: int, uid: int, gid: int) -> None:
        seen.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        real(descriptor, uid, gid)

    monkeypatch.setattr(os, "fchown", watched)
    old = os.umask(0)
    try:
        edit(place, "true")
    finally:
        os.umask(old)
    assert seen == [0o700, 0o600]
