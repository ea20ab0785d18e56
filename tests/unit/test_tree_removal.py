# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Trees that psiphon-user may have made can be removed, whatever they look like."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psiphon_vpn.core.datastore import ASIDE, STORE, STORE_PARENT, set_data_aside
from psiphon_vpn.system.tree_changes import remove_path
from psiphon_vpn.tree_removal import remove_tree

DEEP = 10_000
"""Recursion ends at 1,000 in Python, and a path at 4,096 bytes in Linux."""
WIDE = 100_000
FEW = 40
"""Descriptors."""

NAMES = st.binary(min_size=1, max_size=60).filter(lambda name: not {0, 0x2F} & set(name) and name not in {b".", b".."})
NODES = st.recursive(
    st.sampled_from(["file", "link", "pipe"]), lambda inner: st.dictionaries(NAMES, inner, max_size=4), max_leaves=30
)


@pytest.fixture
def place() -> Iterator[Path]:
    """In memory, since no disk is needed."""
    directory = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield directory
    remove_tree(directory)


def make_deep(path: Path, depth: int = DEEP) -> None:
    """Nested directories, made as an attacker would, so that no path is ever longer than one name."""
    path.mkdir(parents=True, exist_ok=True)
    here = os.open(path, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=here)
        inner = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(os.open("leaf", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(used + FEW, before[0]), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("few_descriptors")
def test_a_tree_of_any_depth_is_removed_with_a_few_descriptors(place: Path) -> None:
    make_deep(place / "tree" / "a")
    make_deep(place / "tree" / "b")
    remove_tree(place / "tree")
    assert list(place.iterdir()) == []


def test_a_wide_tree_is_removed(place: Path) -> None:
    (place / "tree/inner").mkdir(parents=True)
    directory = os.open(place / "tree/inner", os.O_RDONLY)
    for number in range(WIDE):
        if number % 10:
            os.symlink("/", str(number), dir_fd=directory)
        else:
            os.mkdir(str(number), dir_fd=directory)
    os.close(directory)
    remove_tree(place / "tree")
    assert list(place.iterdir()) == []


@pytest.mark.requirement("R24")
def test_what_a_core_left_keeps_nobody_from_removing_or_setting_aside(place: Path) -> None:
    make_deep(place / "state" / "x")
    remove_path(place / "state")
    assert not (place / "state").exists()
    make_deep(place / STORE_PARENT / ASIDE / "x", 2000)
    make_deep(place / STORE_PARENT / STORE / "x", 2000)
    assert set_data_aside(place)
    assert not (place / STORE_PARENT / STORE).exists()


@settings(max_examples=200, deadline=None)
@given(tree=st.dictionaries(NAMES, NODES, max_size=6))
def test_any_tree_is_removed_and_nothing_outside_of_it(tree: dict[bytes, object]) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        place = Path(directory)
        (place / "outside").mkdir()
        (place / "outside/kept").touch()
        build(place / "tree", tree, place / "outside")
        remove_tree(place / "tree")
        assert [path.name for path in place.iterdir()] == ["outside"]
        assert (place / "outside/kept").exists()


def build(path: Path, tree: dict[bytes, object], outside: Path) -> None:
    path.mkdir()
    for name, node in tree.items():
        inner = Path(os.fsdecode(os.fsencode(path) + b"/" + name))
        if isinstance(node, dict):
            build(inner, node, outside)
            inner.chmod(0o700 if len(name) % 2 else 0o000)
        elif node == "link":
            inner.symlink_to(outside)
        elif node == "pipe":
            os.mkfifo(inner)
        else:
            inner.touch()


def test_a_link_is_no_tree(place: Path) -> None:
    (place / "outside").mkdir()
    (place / "link").symlink_to(place / "outside")
    with pytest.raises(OSError, match="link"):
        remove_tree(place / "link")
    assert (place / "outside").exists()


def test_names_that_are_in_the_way_of_what_is_moved_up_do_not_matter(place: Path) -> None:
    for number in range(5):
        (place / f"tree/.removing-{number}/x/y").mkdir(parents=True)
    (place / "tree/.removing-5").touch()
    remove_tree(place / "tree")
    assert list(place.iterdir()) == []


def test_as_much_as_possible_is_removed_and_the_first_failure_reported(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "tree/stays").mkdir(parents=True)
    (place / "tree/stays/immutable").touch()
    (place / "tree/goes").mkdir()
    unlink = os.unlink

    def refuse(path: str, **options: int) -> None:
        if path == "immutable":
            raise PermissionError(errno.EPERM, "Operation not permitted", path)
        unlink(path, **options)

    monkeypatch.setattr(os, "unlink", refuse)
    with pytest.raises(PermissionError, match="immutable"):
        remove_tree(place / "tree")
    monkeypatch.undo()
    assert [path.name for path in (place / "tree").iterdir()] == ["stays"]
    remove_tree(place / "tree")
    assert list(place.iterdir()) == []


def test_a_directory_that_cannot_be_moved_up_is_emptied_where_it_is(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the lower layer of an overlay, rename(2) fails with EXDEV."""

    def refuse(name: str, *_rest: object, **_options: int) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link", name)

    make_deep(place / "tree", 30)
    monkeypatch.setattr(os, "rename", refuse)
    remove_tree(place / "tree")
    assert list(place.iterdir()) == []
    make_deep(place / "tree", 300)
    with pytest.raises(OSError, match="Invalid cross-device link"):
        remove_tree(place / "tree")


def test_whoever_makes_new_entries_all_the_time_does_not_keep_it_busy_for_ever(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "tree").mkdir()
    (place / "tree/0").touch()
    unlink, made = os.unlink, iter(range(1, 10_000))

    def make_another(path: str, *, dir_fd: int) -> None:
        unlink(path, dir_fd=dir_fd)
        (place / "tree" / str(next(made))).touch()

    monkeypatch.setattr(os, "unlink", make_another)
    with pytest.raises(OSError, match="more than can be removed"):
        remove_tree(place / "tree", limit=500)


@pytest.mark.lab
def test_what_is_mounted_in_a_tree_is_not_touched(tmp_path: Path) -> None:
    inner = tmp_path / "tree/a/b"
    inner.mkdir(parents=True)
    code = """
import pathlib, sys
from psiphon_vpn.tree_removal import remove_tree
try:
    remove_tree(pathlib.Path(sys.argv[1]))
except OSError as error:
    print(error.strerror, sorted(path.name for path in pathlib.Path(sys.argv[1]).rglob("kept")))
"""
    script = f"mount -t tmpfs none {inner} && touch {inner}/kept && exec {sys.executable} -c '{code}' {tmp_path}/tree"
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in {
        "something is mounted there ['kept']",
        "Device or resource busy ['kept']",
        "Invalid cross-device link ['kept']",
    }


@pytest.mark.lab
def test_a_user_can_remove_directories_of_its_own_that_it_may_not_enter() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        place = Path(directory)
        place.chmod(0o777)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
                make_deep(place / "tree/closed", 5)
                (place / "tree/closed/d/d").chmod(0)
                (place / "tree/closed").chmod(0o300)
                (place / "tree").chmod(0o500)
                remove_tree(place / "tree")
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert list(place.iterdir()) == []
