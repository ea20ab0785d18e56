# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Where something cannot be written, one sentence says so before anything is changed, and nothing is recorded.

The places are real mounts, in the test's own mount namespace.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from psiphon_vpn.errors import UserError
from psiphon_vpn.system.room import SPARE, check_room

ROOT = Path(__file__).parents[2]
CODE = """
import json, pathlib, subprocess, sys
from tests.scratch_machine import ACTING, PAYLOAD, make_machine
from psiphon_vpn.errors import UserError
from psiphon_vpn.system import configure
from psiphon_vpn.system.install import install_clone, set_up, uninstall
from psiphon_vpn.system.journal import Journal

place, mounts, first, second = sys.argv[1:5]
machine = make_machine(pathlib.Path(place))
say = lambda line: None
work = {
    "install": lambda: install_clone(machine.platform, PAYLOAD, ACTING, say=say),
    "uninstall": lambda: uninstall(machine.platform, say=say),
    "set up": lambda: set_up(machine.platform, ACTING, say=say),
}
if first != "-":
    work[first]()
before = machine.read_all()
subprocess.run(mounts.format(root=machine.root), shell=True, check=True)
said = ""
try:
    work[second]()
except UserError as error:
    said = str(error)
subprocess.run(["umount", "-l", *sys.argv[5:]], check=False, cwd=machine.root)
after = machine.read_all()
result = {"said": said, "same": after == before, "recorded": Journal(machine.platform).read() is not None}
result["removed"] = uninstall(machine.platform, say=say)
result["locked"] = machine.platform.kernel.is_locked()
print(json.dumps(result))
"""


def run_with(tmp_path: Path, mounts: str, first: str, second: str, *places: str) -> dict[str, object]:
    command = ["unshare", "-m", "--propagation", "private", sys.executable, "-c", CODE]
    done = subprocess.run(
        [*command, str(tmp_path), mounts, first, second, *places], capture_output=True, text=True, check=True, cwd=ROOT
    )
    result: dict[str, object] = json.loads(done.stdout)
    return result


READ_ONLY = "mount --bind {{root}}/{place} {{root}}/{place} && mount -o remount,bind,ro {{root}}/{place}"


@pytest.mark.lab
@pytest.mark.requirement("R1", "R24")
@pytest.mark.parametrize("place", ["usr", "etc", "var"])
@pytest.mark.parametrize("what", ["install", "set up"])
def test_a_read_only_place_is_reported_in_one_sentence_and_nothing_is_recorded(
    tmp_path: Path, place: str, what: str
) -> None:
    result = run_with(tmp_path, READ_ONLY.format(place=place), "-", what, place)
    said = str(result.pop("said"))
    assert said.startswith("Nothing was ")
    assert f"/{place}" in said
    assert "Read-only file system" in said
    assert "This system keeps that place read-only" in said
    # Then there is nothing to remove, and that is not a failure.
    assert result == {"same": True, "recorded": False, "removed": False, "locked": False}


@pytest.mark.lab
@pytest.mark.parametrize("place", ["usr", "etc", "var"])
def test_nothing_is_removed_where_not_everything_can_be(tmp_path: Path, place: str) -> None:
    result = run_with(tmp_path, READ_ONLY.format(place=place), "install", "uninstall", place)
    assert str(result.pop("said")).startswith("Nothing was removed: ")
    assert result == {"same": True, "recorded": True, "removed": True, "locked": False}


@pytest.mark.lab
@pytest.mark.parametrize("size", ["64k", "2m"])
def test_a_full_disk_is_reported_before_anything_is_changed(tmp_path: Path, size: str) -> None:
    mounts = "mount -t tmpfs -o size=" + size + " none {root}/usr && mkdir -p {root}/usr/bin"
    result = run_with(tmp_path, mounts, "-", "install", "usr")
    said = str(result.pop("said"))
    assert "there is no room; 5 MiB are needed" in said
    assert "Make room there" in said
    assert result == {"same": True, "recorded": False, "removed": False, "locked": False}


def test_room_that_there_is_is_room(tmp_path: Path) -> None:
    check_room({tmp_path / "a/b/c": 1000}, [tmp_path / "d"], what="Nothing")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="there is no room"):
        check_room({tmp_path / "a": 1 << 60}, [], what="Nothing")
    assert SPARE > 0


@pytest.mark.lab
def test_a_full_disk_keeps_nothing_from_being_removed(tmp_path: Path) -> None:
    fill = (
        "(cp -a {root}/var {root}/old && mount -t tmpfs -o size=64k none {root}/var && cp -a {root}/old/. {root}/var "
    )
    fill += "&& rm -r {root}/old && ! cat /dev/zero > {root}/var/lib/psiphon-vpn/state/full 2>/dev/null)"
    result = run_with(tmp_path, fill, "install", "uninstall", "var")
    assert result["said"] == ""
    assert result["locked"] is False
