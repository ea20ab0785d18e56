# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The store of server lists: verified or refused, and whole whenever it is interrupted."""

from __future__ import annotations

import errno
import functools
import os
import stat
import zlib
from pathlib import Path
from typing import Final

import pytest
from tests.dying import die_at
from tests.server_lists import make_data, make_key, make_list, make_test_profile

from psiphon_vpn.servers.errors import ListError, ListFlaw
from psiphon_vpn.servers.isolated import VerifiedList, read_signed_list
from psiphon_vpn.servers.record import ListRecordError, parse_record, render_record
from psiphon_vpn.servers.store import ListChange, ServerStore
from psiphon_vpn.system.layout import Layout

KEY = make_key()
LAB = make_test_profile(KEY)
OLD, NEW, THIRD = make_list(6, KEY), make_list(7, KEY), make_list(8, KEY)


def make_store(root: Path) -> ServerStore:
    return ServerStore(Layout(root=root), root_uid=os.geteuid())


@functools.cache
def verify(content: bytes) -> VerifiedList:
    return read_signed_list(content, LAB)


def add(store: ServerStore, content: bytes, **options: bool) -> ListChange:
    return store.put(verify(content), content, source="a stick", profile=LAB, **options)


@pytest.fixture
def store(tmp_path: Path) -> ServerStore:
    """A store with OLD in use."""
    made = make_store(tmp_path / "root")
    add(made, OLD)
    return made


def pack_otherwise(content: bytes) -> bytes:
    """Pack the same signed list differently, as anybody could."""
    document = zlib.decompress(content)
    packed = zlib.compress(document + b"\n", 1)
    assert packed != content
    return packed


def test_an_old_list_that_somebody_packed_otherwise_is_still_one_that_was_seen_before(store: ServerStore) -> None:
    """Otherwise it could be offered again and again as a new list, with servers that are gone or were taken over."""
    add(store, NEW)
    for content in (OLD, pack_otherwise(OLD), pack_otherwise(pack_otherwise(OLD))):
        with pytest.raises(ListError) as caught:
            add(store, content)
        assert caught.value.flaw is ListFlaw.SEEN_BEFORE


def test_the_list_in_use_packed_otherwise_does_not_take_the_place_of_the_one_to_go_back_to(store: ServerStore) -> None:
    add(store, NEW)
    before = store.read_current()
    assert before is not None
    change = add(store, pack_otherwise(NEW))
    assert not change.changed
    assert store.open_current() == (change.new, NEW)
    store.rollback()
    assert store.open_current() is not None
    assert (store.open_current() or (None, b""))[1] == OLD


def test_a_list_in_use_that_was_damaged_is_replaced_by_the_same_packed_otherwise(
    store: ServerStore, tmp_path: Path
) -> None:
    path = Layout(root=tmp_path / "root").servers_current / "list"
    path.write_bytes(bytes(len(OLD)))
    packed = pack_otherwise(OLD)
    change = add(store, packed)
    assert store.open_current() == (change.new, packed)


def test_a_list_is_kept_as_it_was_signed_with_a_record_of_roots(tmp_path: Path) -> None:
    made, layout = make_store(tmp_path), Layout(root=tmp_path)
    assert made.read_current() is None
    assert made.open_current() is None
    before = os.umask(0o077)
    try:
        change = add(made, OLD)
    finally:
        os.umask(before)
    assert (change.old, change.changed) == (None, True)
    assert made.open_current() == (change.new, OLD)
    assert (change.new.entries, change.new.by_region, change.new.profile) == (6, {"DE": 3, "NL": 3}, "lab")
    assert (change.new.signed, change.new.source, change.new.size) == (True, "a stick", len(OLD))
    assert parse_record(render_record(change.new)) == change.new
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in layout.servers_current.iterdir()}
    assert modes == {"list": 0o644, "record.json": 0o644}
    assert stat.S_IMODE(layout.servers_current.stat().st_mode) == 0o755


def test_the_list_before_is_kept_and_can_be_gone_back_to(store: ServerStore) -> None:
    with pytest.raises(ListError) as caught:
        store.rollback()
    assert caught.value.flaw is ListFlaw.NO_PREVIOUS
    change = add(store, NEW)
    assert (change.old, change.changed) == (store.read_previous(), True)
    back = store.rollback()
    assert (back.old, back.new) == (change.new, change.old)
    assert store.open_current() == (change.old, OLD)
    assert store.read_previous() == change.new


def test_of_many_lists_two_are_kept(store: ServerStore, tmp_path: Path) -> None:
    for content in (NEW, THIRD):
        add(store, content)
    names = {path.name for path in Layout(root=tmp_path / "root").servers_dir.iterdir()}
    assert len(names - {"current", "previous", ".lock"}) == 2


def test_the_same_list_again_is_a_change_only_in_the_place_of_a_damaged_one(store: ServerStore, tmp_path: Path) -> None:
    assert not add(store, OLD).changed
    place = Layout(root=tmp_path / "root").servers_current / "list"
    place.write_bytes(b"changed by a broken disk")
    change = add(store, OLD)
    assert change.changed
    assert store.open_current() == (change.new, OLD)


def test_a_much_smaller_list_is_a_question_and_nothing_is_lost(store: ServerStore) -> None:
    small = make_list(2, KEY)
    with pytest.raises(ListError) as caught:
        add(store, small)
    assert caught.value.flaw is ListFlaw.MUCH_SMALLER
    current = store.open_current()
    assert current is not None
    assert current[1] == OLD
    assert add(store, small, allow_smaller=True).new.entries == 2


def test_a_list_that_was_in_use_before_is_a_question(store: ServerStore) -> None:
    for content in (NEW, THIRD):
        add(store, content)
    for content in (OLD, NEW):
        with pytest.raises(ListError) as caught:
            add(store, content)
        assert caught.value.flaw is ListFlaw.SEEN_BEFORE
    assert add(store, NEW, allow_seen=True).new.entries == 7


def test_bare_entries_are_stored_as_what_they_are(store: ServerStore, tmp_path: Path) -> None:
    data = make_data(5)
    change = store.add(data, source="a friend", profile=None)
    assert (change.new.signed, change.new.profile) == (False, "")
    assert store.open_current() == (change.new, data)
    assert (Layout(root=tmp_path / "root").servers_current / "entries").read_bytes() == data


REFUSED: Final = {
    "nothing": b"",
    "a web page": b"<html>",
    "a part": OLD[:-1],
    "another key's": make_list(9, make_key(1)),
    "huge": b"x" * 40_000_000,
}


@pytest.mark.parametrize("what", REFUSED)
def test_whatever_is_refused_leaves_the_old_list_in_use(what: str, store: ServerStore, tmp_path: Path) -> None:
    content = REFUSED[what]
    before = sorted(path.name for path in Layout(root=tmp_path / "root").servers_dir.rglob("*"))
    with pytest.raises(ListError):
        store.add(content, source="a stick", profile=LAB)
    assert sorted(path.name for path in Layout(root=tmp_path / "root").servers_dir.rglob("*")) == before
    current = store.open_current()
    assert current is not None
    assert current[1] == OLD


def test_forgotten_lists_are_gone(store: ServerStore) -> None:
    add(store, NEW)
    assert store.remove()
    assert store.read_current() is None
    assert store.read_previous() is None
    assert not store.remove()


def test_two_changes_do_not_run_at_once(store: ServerStore, tmp_path: Path) -> None:
    import fcntl

    with (Layout(root=tmp_path / "root").servers_dir / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ListError) as caught:
            add(store, NEW)
    assert caught.value.flaw is ListFlaw.BUSY


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to other users")
@pytest.mark.parametrize("name", ["record.json", "list", "."])
def test_what_others_could_have_written_is_not_trusted(name: str, store: ServerStore, tmp_path: Path) -> None:
    os.chown(Layout(root=tmp_path / "root").servers_current / name, 65534, 65534)
    with pytest.raises(ListError) as caught:
        store.open_current()
    assert caught.value.flaw is ListFlaw.BAD_RECORD
    assert add(store, NEW).changed, "a good list can still be stored"


@pytest.mark.parametrize(
    ("old", "new"),
    [(b'"signed": true', b'"signed": 1'), (b'"profile": "lab"', b'"profile": ""'), (b'"entries": 6', b'"entries": 0')],
)
def test_a_malformed_record_is_refused(old: bytes, new: bytes, store: ServerStore) -> None:
    record = store.read_current()
    assert record is not None
    content = render_record(record)
    assert old in content
    with pytest.raises(ListRecordError):
        parse_record(content.replace(old, new))


@pytest.mark.parametrize("what", ["an import", "a rollback", "the same again"])
def test_whenever_it_dies_the_old_list_or_the_new_one_is_in_use_whole(what: str, tmp_path: Path) -> None:
    number, seen = 0, set()
    while True:
        number += 1
        made = make_store(tmp_path / str(number))
        add(made, OLD)
        add(made, NEW)
        work = {
            "an import": lambda made=made: add(made, THIRD),
            "a rollback": lambda made=made: made.rollback(),
            "the same again": lambda made=made: add(made, NEW),
        }[what]
        through = die_at(number, work)
        current = made.open_current()
        assert current is not None
        assert current[1] in {OLD, NEW, THIRD}
        assert made.read_previous() is not None
        seen.add(current[1])
        assert add(made, THIRD).new.entries == 8
        names = {path.name for path in Layout(root=tmp_path / str(number)).servers_dir.iterdir()}
        assert len(names) <= 5, names
        assert not names & {".staging", ".link"}
        if through:
            break
    assert seen == {"an import": {NEW, THIRD}, "a rollback": {NEW, OLD}, "the same again": {NEW}}[what]
    assert number > 5


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS])
def test_whichever_call_fails_the_old_list_stays_in_use_and_that_is_said(
    error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = 0
    while True:
        number += 1
        made = make_store(tmp_path / str(number))
        add(made, OLD)
        count = 0

        def fail(real: object, number: int = number) -> object:
            def call(*args: object, **options: object) -> object:
                nonlocal count
                count += 1
                if count == number:
                    raise OSError(error, os.strerror(error))
                return real(*args, **options)  # type: ignore[operator]

            return call

        with monkeypatch.context() as patch:
            for name in ("mkdir", "fsync", "chmod", "fchmod", "rename", "replace", "symlink"):
                patch.setattr(os, name, fail(getattr(os, name)))
            try:
                add(made, NEW)
            except ListError as caught:
                assert caught.flaw is ListFlaw.DISK
            else:
                break
        current = made.open_current()
        assert current is not None
        assert current[1] in {OLD, NEW}
    assert number > 6
