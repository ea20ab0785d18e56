# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The store of cores: verified or refused, and whole whenever it is interrupted."""

from __future__ import annotations

import ast
import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cores import MACHINE, list_tree, make_elf, make_store, pin, sha256
from tests.dying import die_at

from psiphon_vpn.core import files, manifest
from psiphon_vpn.core.flaws import CoreFlaw, CoreFlawError
from psiphon_vpn.core.store import CoreStore, Owner
from psiphon_vpn.system.layout import Layout

OLD, NEW = make_elf(b"old"), make_elf(b"new" * 1000)
OTHER = "aarch64" if MACHINE != "aarch64" else "x86_64"
ROOT = Path(__file__).parents[2]


def put(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def put_pipe(path: Path) -> Path:
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    return path


def put_directory(path: Path) -> Path:
    path.mkdir()
    return path


def put_link(path: Path, target: Path) -> Path:
    path.symlink_to(target)
    return path


@pytest.fixture
def store(tmp_path: Path) -> CoreStore:
    """A store with OLD in use; OLD and NEW are pinned."""
    made = make_store(tmp_path / "root", pin(OLD, order=1), pin(NEW, order=2))
    made.install_file(put(tmp_path / "old", OLD))
    return made


def core_dir(tmp_path: Path) -> Path:
    return Layout(root=tmp_path / "root").core_dir


@pytest.mark.requirement("R12", "R13")
def test_an_installed_core_is_recorded_with_its_sha256_and_has_the_modes_that_are_claimed(tmp_path: Path) -> None:
    layout = Layout(root=tmp_path / "root")
    made = make_store(layout.root, pin(OLD))
    before = os.umask(0o077)
    try:
        change = made.install_file(put(tmp_path / "file", OLD), source="a stick")
    finally:
        os.umask(before)
    assert (change.old, change.changed) == (None, True)
    assert change.new == made.read_current() == made.check_current()
    assert (change.new.sha256, change.new.size, change.new.revision) == (sha256(OLD), len(OLD), "0000000001")
    assert (change.new.blob, change.new.commit, change.new.source) == (pin(OLD).blob, pin(OLD).commit, "a stick")
    assert layout.core_binary.read_bytes() == OLD
    modes = {
        path: stat.S_IMODE(path.stat().st_mode)
        for path in (layout.data_dir, layout.core_dir, layout.core_current, layout.core_binary, layout.core_record)
    }
    assert list(modes.values()) == [0o755, 0o755, 0o755, 0o755, 0o644]
    assert os.readlink(layout.core_current) == sha256(OLD), "relative, so that the tree can be moved"
    assert {path.name for path in layout.core_dir.iterdir()} == {".lock", "current", sha256(OLD)}


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")
@pytest.mark.requirement("R12")
def test_only_the_binary_is_given_to_the_service_user(tmp_path: Path) -> None:
    layout = Layout(root=tmp_path)
    CoreStore(layout, owner=Owner(uid=64190, gid=64191)).install_file(put(tmp_path / "f", OLD), sha256=sha256(OLD))
    owners = {path.name: path.stat().st_uid for path in (layout.core_dir, layout.core_current, layout.core_record)}
    assert set(owners.values()) == {0}
    assert (layout.core_binary.stat().st_uid, layout.core_binary.stat().st_gid) == (64190, 64191)


def test_without_the_service_user_nothing_is_installed_and_that_is_said(tmp_path: Path) -> None:
    made = CoreStore(Layout(root=tmp_path), root_uid=os.geteuid())
    with pytest.raises(Exception, match="no user psiphon-user") as caught:
        made.install_file(put(tmp_path / "f", OLD), sha256=sha256(OLD))
    assert "sudo psiphon-vpn setup" in str(caught.value)
    assert made.read_current() is None


REFUSED: dict[str, tuple[Callable[[Path], Path], dict[str, str], CoreFlaw, str]] = {
    "is not there": (lambda path: path, {}, CoreFlaw.UNREADABLE, "No such file"),
    "is a directory": (put_directory, {}, CoreFlaw.UNREADABLE, "no regular file"),
    "is a pipe": (put_pipe, {}, CoreFlaw.UNREADABLE, "no regular file"),
    "is a device": (lambda _: Path("/dev/zero"), {}, CoreFlaw.UNREADABLE, "no regular file"),
    "is a link to a pipe": (
        lambda path: put_link(path, put_pipe(path.with_suffix(".pipe"))),
        {},
        CoreFlaw.UNREADABLE,
        "no regular file",
    ),
    "is empty": (lambda path: put(path, b""), {}, CoreFlaw.NOT_ELF, "no Linux program"),
    "is a page": (lambda path: put(path, b"<html>404</html>" * 9), {}, CoreFlaw.NOT_ELF, "no Linux program"),
    "is a script": (lambda path: put(path, b"#!/bin/sh\nexit 0\n" * 9), {}, CoreFlaw.NOT_ELF, "no Linux program"),
    "is an object file": (lambda path: put(path, make_elf(kind=1)), {}, CoreFlaw.NOT_ELF, "no program"),
    "is for another processor": (
        lambda path: put(path, make_elf(machine=OTHER)), {}, CoreFlaw.WRONG_ARCHITECTURE, f"is for {OTHER}"
    ),
    "has one bit changed": (
        lambda path: put(path, NEW[:-1] + bytes([NEW[-1] ^ 1])), {"sha256": sha256(NEW)}, CoreFlaw.MISMATCH, "SHA-256"
    ),
    "is truncated": (lambda path: put(path, NEW[:-1]), {"sha256": sha256(NEW)}, CoreFlaw.MISMATCH, "SHA-256"),
    "is another than the given SHA-256 says though it is pinned": (
        lambda path: put(path, NEW), {"sha256": sha256(OLD)}, CoreFlaw.MISMATCH, "SHA-256"
    ),
    "is unknown and nothing is given": (
        lambda path: put(path, make_elf(b"x")), {}, CoreFlaw.UNPINNED, "does not know it"
    ),
}  # fmt: skip


@pytest.mark.requirement("R13", "R14")
@pytest.mark.parametrize("what", REFUSED)
def test_a_file_is_refused_and_the_core_in_use_stays_as_it_is_when_it(
    what: str, store: CoreStore, tmp_path: Path
) -> None:
    make, options, flaw, words = REFUSED[what]
    before = list_tree(tmp_path / "root")
    with pytest.raises(CoreFlawError, match=words) as caught:
        store.install_file(make(tmp_path / "file"), sha256=options.get("sha256"))
    assert caught.value.flaw is flaw
    assert "\n" not in str(caught.value)
    assert list_tree(tmp_path / "root") == before
    assert store.check_current().sha256 == sha256(OLD)


def test_what_is_larger_than_any_core_is_not_copied_to_the_end(
    store: CoreStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_CORE_SIZE", 4096)
    with pytest.raises(CoreFlawError) as caught:
        store.install_file(put(tmp_path / "file", make_elf(bytes(9000))))
    assert caught.value.flaw is CoreFlaw.TOO_LARGE


def test_on_arm64_the_official_core_is_refused_with_the_way_that_there_is(tmp_path: Path) -> None:
    made = make_store(tmp_path / "root", machine="aarch64")
    content = make_elf(machine="x86_64")
    with pytest.raises(CoreFlawError, match="is for x86_64, and this machine is aarch64") as caught:
        made.install_file(put(tmp_path / "f", content), sha256=sha256(content))
    assert "--core-file PATH --sha256 HEX" in str(caught.value)
    own = make_elf(machine="aarch64")
    assert made.install_file(put(tmp_path / "f", own), sha256=sha256(own)).new.architecture == "aarch64"


@pytest.mark.requirement("R13")
@pytest.mark.parametrize("wrong", ["size", "sha256", "blob"], ids=["its size", "its SHA-256", "its git id"])
def test_everything_that_is_pinned_has_to_be_so(wrong: str, tmp_path: Path) -> None:
    good = pin(NEW, known=True)
    values = {"size": len(NEW) + 1, "sha256": sha256(OLD), "blob": "0" * 40}
    bad = type(good)(**{**{name: getattr(good, name) for name in good.__dataclass_fields__}, wrong: values[wrong]})
    made = make_store(tmp_path / "root", good)
    with (
        pytest.raises(CoreFlawError) as caught,
        made.exclusive(),
        made.stage(put(tmp_path / "f", NEW), source="s", expected=bad),
    ):
        pytest.fail("it was accepted")
    assert caught.value.flaw is CoreFlaw.MISMATCH
    with made.exclusive(), made.stage(tmp_path / "f", source="s", expected=good) as staged:
        assert staged.record.sha256 == sha256(NEW)


@pytest.mark.requirement("R14")
def test_an_older_core_is_refused_unless_asked_for(store: CoreStore, tmp_path: Path) -> None:
    new, old = put(tmp_path / "new", NEW), tmp_path / "old"
    assert store.install_file(new).new.order == 2
    with pytest.raises(CoreFlawError, match="0000000001 is older than 0000000002") as caught:
        store.install_file(old)
    assert caught.value.flaw is CoreFlaw.OLDER
    assert store.check_current().sha256 == sha256(NEW)
    # The SHA-256 alone does not bypass this: the manifest knows the file.
    with pytest.raises(CoreFlawError, match="is older"):
        store.install_file(old, sha256=sha256(OLD))
    assert store.install_file(old, allow_older=True).new.order == 1


@pytest.mark.requirement("R14")
def test_of_a_core_that_nobody_has_pinned_it_is_said_what_cannot_be_known(store: CoreStore, tmp_path: Path) -> None:
    unknown = make_elf(b"my own")
    path = put(tmp_path / "own", unknown)
    with store.exclusive(), store.stage(path, source="own", sha256=sha256(unknown).upper()) as staged:
        assert any("older" in text for text in staged.warnings)
        assert any("revision" in text for text in staged.warnings)
        change = store.activate(staged)
    assert change.new.revision is None


@pytest.mark.requirement("R14")
def test_rollback_changes_places_and_again_changes_them_back(store: CoreStore, tmp_path: Path) -> None:
    store.install_file(put(tmp_path / "new", NEW))
    for now, before in ((OLD, NEW), (NEW, OLD), (OLD, NEW)):
        change = store.rollback()
        assert (change.new.sha256, change.old and change.old.sha256) == (sha256(now), sha256(before))
        previous = store.read_previous()
        assert previous is not None
        assert previous.sha256 == sha256(before)
        assert store.check_current().sha256 == sha256(now)


@pytest.mark.requirement("R13", "R14")
def test_there_is_no_rollback_to_nothing_nor_to_what_was_changed(store: CoreStore, tmp_path: Path) -> None:
    with pytest.raises(CoreFlawError) as caught:
        store.rollback()
    assert caught.value.flaw is CoreFlaw.NO_PREVIOUS
    store.install_file(put(tmp_path / "new", NEW))
    (core_dir(tmp_path) / "previous" / "psiphon-tunnel-core").write_bytes(OLD + b"!")
    before = list_tree(tmp_path / "root")
    with pytest.raises(CoreFlawError) as caught:
        store.rollback()
    assert caught.value.flaw is CoreFlaw.MISMATCH
    assert list_tree(tmp_path / "root") == before


def test_of_many_cores_two_are_kept(store: CoreStore, tmp_path: Path) -> None:
    for number in range(4):
        content = make_elf(bytes([number]))
        store.install_file(put(tmp_path / "f", content), sha256=sha256(content))
    kept = {path.name for path in core_dir(tmp_path).iterdir()}
    assert kept == {".lock", "current", "previous", sha256(make_elf(b"\x02")), sha256(make_elf(b"\x03"))}


@pytest.mark.requirement("R13")
def test_installing_the_same_again_changes_nothing_but_repairs_what_was_changed(
    store: CoreStore, tmp_path: Path
) -> None:
    before = list_tree(tmp_path / "root")
    assert store.install_file(tmp_path / "old").changed is False
    assert list_tree(tmp_path / "root") == before
    binary = core_dir(tmp_path) / "current" / "psiphon-tunnel-core"
    binary.write_bytes(b"something else")
    with pytest.raises(CoreFlawError) as caught:
        store.check_current()
    assert caught.value.flaw is CoreFlaw.MISMATCH
    assert store.install_file(tmp_path / "old").changed is True
    assert store.check_current().sha256 == sha256(OLD)
    assert binary.read_bytes() == OLD


BROKEN_RECORDS: dict[str, Callable[[Path], object]] = {
    "is no JSON": lambda record: record.write_text("{"),
    "is a list": lambda record: record.write_text("[]"),
    "lacks the SHA-256": lambda record: record.write_text(record.read_text().replace('"sha256"', '"other"')),
    "has a malformed SHA-256": lambda record: record.write_text(record.read_text().replace(sha256(OLD), "0")),
    "has a boolean for a size": lambda record: record.write_text(
        record.read_text().replace(f'"size": {len(OLD)}', '"size": true')
    ),
    "is huge": lambda record: record.write_text("[" * (1 << 20)),
    "can be written by others": lambda record: record.chmod(0o666),
    "is in a directory that others can write to": lambda record: record.parent.chmod(0o777),
    "is a pipe": put_pipe,
    "is a link": lambda record: put_link(record, record.rename(f"{record}.x")),
}


@pytest.mark.requirement("R12", "R13")
@pytest.mark.parametrize("what", BROKEN_RECORDS)
def test_a_record_is_not_trusted_and_an_installation_goes_on_all_the_same_when_it(
    what: str, store: CoreStore, tmp_path: Path
) -> None:
    record = core_dir(tmp_path) / "current" / "record.json"
    BROKEN_RECORDS[what](record)
    for read in (store.check_current, store.read_current):
        with pytest.raises(CoreFlawError) as caught:
            read()
        assert caught.value.flaw is CoreFlaw.BAD_RECORD
    assert store.install_file(put(tmp_path / "new", NEW)).new.sha256 == sha256(NEW)
    assert store.check_current().sha256 == sha256(NEW)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")
@pytest.mark.requirement("R12")
@pytest.mark.parametrize("name", ["", "current", "current/record.json"], ids=["core", "its directory", "the record"])
def test_a_record_that_the_service_user_could_have_written_is_not_trusted(name: str, tmp_path: Path) -> None:
    layout = Layout(root=tmp_path)
    made = CoreStore(layout, owner=Owner(uid=64190, gid=64190))
    made.install_file(put(tmp_path / "f", OLD), sha256=sha256(OLD))
    made.check_current()
    os.chown(layout.core_dir / name, 64190, 64190)
    with pytest.raises(CoreFlawError) as caught:
        made.check_current()
    assert caught.value.flaw is CoreFlaw.BAD_RECORD


def test_nothing_installed_is_none_to_read_and_a_flaw_to_check(tmp_path: Path) -> None:
    made = make_store(tmp_path)
    assert made.read_current() is made.read_previous() is None
    with pytest.raises(CoreFlawError, match="none is installed") as caught:
        made.check_current()
    assert caught.value.flaw is CoreFlaw.NOT_INSTALLED
    assert list(tmp_path.iterdir()) == [], "reading creates nothing"


def test_two_installations_do_not_run_at_once(store: CoreStore, tmp_path: Path) -> None:
    again = make_store(tmp_path / "root", pin(OLD))
    with store.exclusive(), pytest.raises(CoreFlawError) as caught, again.exclusive():
        pytest.fail("both")
    assert caught.value.flaw is CoreFlaw.BUSY
    with again.exclusive():
        pass


def test_a_directory_that_others_can_write_to_is_not_used(store: CoreStore, tmp_path: Path) -> None:
    core_dir(tmp_path).chmod(0o777)
    with pytest.raises(CoreFlawError, match="written by others") as caught:
        store.install_file(tmp_path / "old")
    assert caught.value.flaw is CoreFlaw.BAD_RECORD


# -- interrupted -------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R13", "R14")
@pytest.mark.parametrize("what", ["an update", "a rollback", "a repair"])
def test_whenever_it_dies_a_valid_core_is_in_use_and_the_next_run_succeeds(what: str, tmp_path: Path) -> None:
    third = make_elf(b"third")
    number, seen = 0, set()
    while True:
        number += 1
        root = tmp_path / str(number)
        made = make_store(root, pin(OLD, order=1), pin(NEW, order=2), pin(third, order=3))
        made.install_file(put(tmp_path / "old", OLD))
        made.install_file(put(tmp_path / "new", NEW))
        binary = Layout(root=root).core_binary
        if what == "a repair":
            binary.write_bytes(b"changed")
        work = {
            "an update": lambda made=made: made.install_file(put(tmp_path / "third", third)),
            "a rollback": lambda made=made: made.rollback(),
            "a repair": lambda made=made: made.install_file(tmp_path / "new"),
        }[what]
        through = die_at(number, work)
        if what == "a repair" and binary.read_bytes() == b"changed":
            seen.add("changed")
        else:
            seen.add(made.check_current().sha256)
            assert made.read_previous() is not None
        assert made.install_file(put(tmp_path / "third", third)).new.sha256 == sha256(third)
        names = {path.name for path in Layout(root=root).core_dir.iterdir()}
        assert len(names) <= 5, names
        assert not names & {".staging", ".link"}
        if through:
            break
    ends = {"an update": {sha256(NEW), sha256(third)}, "a rollback": {sha256(NEW), sha256(OLD)}}
    assert seen == ends.get(what, {"changed", sha256(NEW)}), (
        "the change was interrupted before and after it took effect"
    )
    assert number > 10


@pytest.mark.requirement("R13", "R14")
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_whichever_call_fails_the_core_in_use_stays_valid_and_that_is_said(
    error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = 0
    while True:
        number += 1
        made = make_store(tmp_path / str(number), pin(OLD, order=1), pin(NEW, order=2))
        made.install_file(put(tmp_path / "old", OLD))
        count = 0

        def fail(real: Callable[..., object], number: int = number) -> Callable[..., object]:
            def call(*args: object, **options: object) -> object:
                nonlocal count
                count += 1
                if count == number:
                    raise OSError(error, os.strerror(error))
                return real(*args, **options)

            return call

        put(tmp_path / "new", NEW)
        with monkeypatch.context() as patch:
            for name in ("mkdir", "fsync", "chmod", "fchmod", "fchown", "rename", "replace", "symlink"):
                patch.setattr(os, name, fail(getattr(os, name)))
            try:
                change = made.install_file(tmp_path / "new")
            except CoreFlawError as caught:
                assert caught.flaw is CoreFlaw.DISK
                assert os.strerror(error) in str(caught)
            else:
                assert change.changed
                break
        assert made.check_current().sha256 in {sha256(OLD), sha256(NEW)}
        assert made.install_file(tmp_path / "new").new.sha256 == sha256(NEW)
    assert number > 8


FULL_DISK = """
import os, subprocess, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from tests.cores import make_elf, make_store, pin, sha256
from psiphon_vpn.core.flaws import CoreFlawError
root, work = Path(sys.argv[1]), Path(sys.argv[2])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(root)], check=True)
old, new = make_elf(b"old"), make_elf(os.urandom(1 << 20))
store = make_store(root, pin(old), pin(new, order=2))
(work / "old").write_bytes(old)
(work / "new").write_bytes(new)
store.install_file(work / "old")
try:
    store.install_file(work / "new")
except CoreFlawError as error:
    print(error.flaw, error)
assert store.check_current().sha256 == sha256(old)
left = {path.name for path in (root / "var/lib/psiphon-vpn/core").iterdir()}
print(left == {".lock", "current", sha256(old)})
"""


@pytest.mark.lab
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system in a namespace of its own")
@pytest.mark.requirement("R14")
def test_on_a_disk_that_is_full_the_core_in_use_stays_and_nothing_is_left_over(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    done = subprocess.run(
        ["unshare", "--mount", sys.executable, "-c", FULL_DISK, tmp_path / "root", tmp_path, ROOT],
        capture_output=True, text=True, check=True, timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    first, second = done.stdout.splitlines()
    assert first.startswith("disk The tunnel program is not installed:")
    assert "No space left on device" in first
    assert second == "True"


# -- the manifest ------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R13")
def test_the_manifest_of_the_package_pins_the_known_core_by_commit_and_content() -> None:
    known = manifest.load_manifest()
    core = known.newest("x86_64")
    assert core is not None
    assert core.revision == "24b8381cc3"
    assert core.blob == "fc06db4ef4919012f84d1f2d8644f8f85c2f779c"
    url = known.url_of(core)
    assert url.startswith("https://")
    assert f"/{core.commit}/linux/psiphon-tunnel-core-x86_64" in url
    assert known.newest("aarch64") is None


def test_a_git_blob_id_is_what_git_says(tmp_path: Path) -> None:
    # printf 'hello\\n' | git hash-object --stdin
    assert manifest.compute_blob_id([b"hel", b"lo\n"], 6) == "ce013625030ba8dba906f756967f9e9ca394464a"
    assert manifest.compute_blob_id([], 0) == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"


GOOD = manifest.MANIFEST_PATH.read_text(encoding="utf-8")
BAD_MANIFESTS = {
    "is no TOML": GOOD + "[",
    "has an address that is not https": GOOD.replace("https://", "http://"),
    "has an address by branch": GOOD.replace("{commit}", "master"),
    "has a short commit": GOOD.replace("ee42e4b982819beb51613c5cb39ed846d92dfdd7", "ee42e4b"),
    "has no blob": GOOD.replace("blob =", "# blob ="),
    "has a field that nobody knows": GOOD + "blobb = 1\n",
    "has a path that leads out": GOOD.replace('"linux/', '"linux/../'),
    "has a negative size": GOOD + "size = -1\n",
    "has a SHA-256 that is none": GOOD + 'sha256 = "0"\n',
    "has one order twice": GOOD + GOOD[GOOD.index("[[core]]") :],
    "has an order that is no number": GOOD.replace("order = 1", "order = true"),
}


@pytest.mark.requirement("R13")
@pytest.mark.parametrize("what", BAD_MANIFESTS)
def test_a_manifest_is_refused_when_it(what: str) -> None:
    manifest.parse_manifest(GOOD)
    with pytest.raises(manifest.ManifestError):
        manifest.parse_manifest(BAD_MANIFESTS[what])


def test_pinning_adds_size_and_sha256_to_the_one_entry_and_keeps_every_other_line() -> None:
    text = GOOD + "\n" + GOOD[GOOD.index("[[core]]") :].replace("order = 1", "order = 2")
    cores = manifest.parse_manifest(text).cores
    for core in cores:
        pinned = type(core)(
            **{**{name: getattr(core, name) for name in core.__dataclass_fields__}, "size": 77, "sha256": "a" * 64}
        )
        once = manifest.render_pinned(text, pinned)
        assert [line for line in once.splitlines() if not line.startswith(("size", "sha256"))] == text.splitlines()
        assert manifest.render_pinned(once, pinned) == once
        assert set(manifest.parse_manifest(once).cores) == {*cores, pinned} - {core}


# -- what it cannot do -------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R3", "R14")
def test_nothing_that_installs_a_core_can_touch_the_lock() -> None:
    """By construction: these modules and everything that they import know no rules, routes or netlink."""
    names = sorted(path.stem for path in (ROOT / "src/psiphon_vpn/core").glob("*.py"))
    wanted = [name for name in names if name in {"store", "fetch", "obtain", "verify", "files", "image", "manifest"}]
    code = f"import sys; from psiphon_vpn.core import {', '.join(wanted)}; print(*sorted(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, check=True, timeout=60, env={"PYTHONPATH": str(ROOT / "src")},
    ).stdout.split()  # fmt: skip
    assert "psiphon_vpn.core.store" in loaded
    assert [name for name in loaded if name.startswith(("psiphon_vpn.linux", "psiphon_vpn.service", "pyroute2"))] == []


@pytest.mark.defect(10)
@pytest.mark.requirement("R13")
def test_nothing_that_installs_a_core_executes_anything() -> None:
    for name in ("store", "verify", "files", "manifest", "elf", "record", "fetch", "obtain"):
        path = ROOT / "src/psiphon_vpn/core" / f"{name}.py"
        if not path.exists():
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        used |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        used |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not used & {"subprocess", "psiphon_vpn.run", "system", "posix_spawn", "execv", "execve", "spawnv"}, name
