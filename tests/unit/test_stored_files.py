# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Whatever is in one of the service's files, reading it gives a value or its one typed error."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.scratch_machine import make_machine

from psiphon_vpn.core.manifest import MANIFEST_PATH, ManifestError, parse_manifest
from psiphon_vpn.core.partial_download import PartialDownload
from psiphon_vpn.core.record import CoreRecord, RecordError, parse_record, render_record
from psiphon_vpn.diagnose import verify
from psiphon_vpn.diagnose.system import RealSystem
from psiphon_vpn.service.events import Intent
from psiphon_vpn.service.intent import load_intent
from psiphon_vpn.stored_files import StoredError, parse_object, read_stored, take
from psiphon_vpn.system import released
from psiphon_vpn.system.change import Previous
from psiphon_vpn.system.change_kinds import KINDS, restore_change
from psiphon_vpn.system.journal import Journal, Method, Record
from psiphon_vpn.system.layout import Layout
from psiphon_vpn.system.stage import JournalError, Stage
from psiphon_vpn.system.system_changes import SettingWritten, TablesLoaded, UnitStarted
from psiphon_vpn.system.tree_changes import FileWritten

RECORD = CoreRecord(
    sha256="a" * 64, size=1, blob="b", architecture="x86_64", source="/a/file", installed_at="2026-01-01T00:00:00+00:00"
)
BEFORE = Previous(mode=0o644, uid=0, gid=0, content="YQ==")
CHANGES = (
    TablesLoaded(),
    UnitStarted(unit="psiphon-vpn.service"),
    SettingWritten(name="net/ipv4/conf/eth0.10/accept_redirects", value="0", previous="1"),
    FileWritten(path="/usr/bin/psiphon-vpn", mode=0o755, sha256="a", previous=BEFORE),
)

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["\ud800", "\0", "..", "/"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
ODD_BYTES = (
    b"",
    b"\xff\xfe",
    b"\xef\xbb\xbf{}",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"size": NaN}',
    b'{"size": 1e999}',
    b'{"size": ' + b"9" * 10_000 + b"}",
    b'{"sha256": 1, "sha256": 2}',
    b"null",
    b"\0" * 4096,
    b'"' + b"a" * 1_000_000 + b'"',
)


@st.composite
def mutations(draw: st.DrawFn, good: dict[str, object]) -> bytes:
    """A valid document with something removed, changed or added at any depth."""
    document: Any = json.loads(json.dumps(good))
    place = document
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            break
        key = draw(st.sampled_from(keys))
        if isinstance(place[key], dict | list) and place[key] and draw(st.booleans()):
            place = place[key]
            continue
        match draw(st.sampled_from(["drop", "replace", "add"])):
            case "drop":
                del place[key]
            case "replace":
                place[key] = draw(values)
            case "add" if isinstance(place, dict):
                place[draw(st.text(max_size=8))] = draw(values)
        break
    return json.dumps(document).encode()


@dataclass(frozen=True)
class Kept:
    """One of the service's files: how it is read, its error when it cannot be read, and a valid content."""

    read: Callable[[Path, bytes], object]
    error: type[Exception] | None
    good: dict[str, object]


def read_record(_place: Path, content: bytes) -> object:
    return parse_record(content)


def read_journal(place: Path, content: bytes) -> object:
    machine = make_layout(place)
    machine.install_journal.write_bytes(content)
    return Journal(cast(Any, Platform(machine))).read()


@dataclass(frozen=True)
class Platform:
    layout: Layout


def make_layout(place: Path) -> Layout:
    layout = Layout(root=place)
    for directory in (layout.data_dir, layout.program_dir, place / "run"):
        directory.mkdir(parents=True, exist_ok=True)
    return layout


def read_release(place: Path, content: bytes) -> object:
    layout = make_layout(place)
    layout.release_record.write_bytes(content)
    return released.read_record(layout)


def read_program_manifest(place: Path, content: bytes) -> object:
    layout = make_layout(place)
    layout.program_manifest.write_bytes(content)
    return verify.read_manifest(RealSystem(), layout)


def read_partial(place: Path, content: bytes) -> object:
    url = "https://example.org/core"
    found = PartialDownload.find(place, url)
    found.path.write_bytes(b"so far")
    found.note.write_bytes(content)
    again = PartialDownload.find(place, url)
    assert again.validator is None or isinstance(again.validator, str)
    assert again.size == (6 if again.validator is not None else 0)
    return again


def read_intent(place: Path, content: bytes) -> object:
    (place / "intent").write_bytes(content)
    return load_intent(place / "intent")


def read_core_manifest(_place: Path, content: bytes) -> object:
    return parse_manifest(content.decode("utf-8", "replace"))


JOURNAL = {
    "format": 1,
    "method": "clone",
    "version": "1",
    "stage": "installed",
    "had_directory": False,
    "changes": [change.store() for change in CHANGES],
}
FILES = {
    "core record": Kept(read_record, RecordError, json.loads(render_record(RECORD))),
    "journal": Kept(read_journal, JournalError, JOURNAL),
    "release record": Kept(read_release, None, {"since": "2026-01-01T00:00:00+00:00", "by": "1000"}),
    "program manifest": Kept(
        read_program_manifest,
        verify.ManifestError,
        {"version": "1", "files": [{"path": "/usr/bin/x", "sha256": "a" * 64, "mode": "0755", "owner": "root"}]},
    ),
    "partial download": Kept(read_partial, None, {"validator": '"abc"'}),
    "intent": Kept(read_intent, None, {"connected": True}),
    "core manifest": Kept(read_core_manifest, ManifestError, {"repository": "a/b", "url": "https://", "core": []}),
}
EACH = pytest.mark.parametrize("kept", FILES.values(), ids=FILES)
QUICK = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def try_to_read(kept: Kept, place: Path, content: bytes) -> None:
    try:
        kept.read(place, content)
    except Exception as error:  # noqa: BLE001  what is asserted is its type
        assert kept.error is not None, repr(error)
        assert type(error) is kept.error, repr(error)


@EACH
@pytest.mark.parametrize("content", ODD_BYTES, ids=range(len(ODD_BYTES)))
def test_odd_files_have_their_typed_reason(kept: Kept, content: bytes, tmp_path: Path) -> None:
    try_to_read(kept, tmp_path, content)


@EACH
@QUICK
@given(content=st.binary(max_size=200) | st.binary(max_size=30).map(lambda data: b"{" + data + b"}"))
def test_any_bytes_have_their_typed_reason(kept: Kept, content: bytes, tmp_path: Path) -> None:
    try_to_read(kept, tmp_path, content)


@EACH
@QUICK
@given(data=st.data())
def test_any_change_of_a_good_file_has_its_typed_reason(kept: Kept, data: st.DataObject, tmp_path: Path) -> None:
    try_to_read(kept, tmp_path, data.draw(mutations(kept.good) | values.map(lambda value: json.dumps(value).encode())))


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=200))
@example(text="core = " + "[" * 20_000)
@example(text="x = " + "9" * 10_000)
@example(text=MANIFEST_PATH.read_text().replace("{path}", "{path}{x}"))
@example(text=MANIFEST_PATH.read_text().replace("[[core]]", "[core]"))
def test_any_manifest_of_cores_is_one_or_refused(text: str) -> None:
    try:
        manifest = parse_manifest(text)
    except ManifestError:
        return
    for core in manifest.cores:
        assert manifest.url_of(core).startswith("https://")


@pytest.mark.requirement("R13", "R24")
@pytest.mark.parametrize("name", ["revision", "commit", "order", "sha256", "size", "source"])
def test_a_record_without_a_field_that_may_be_null_means_null_and_any_other_is_missed(name: str) -> None:
    fields = {key: value for key, value in json.loads(render_record(RECORD)).items() if key != name}
    content = json.dumps(fields).encode()
    if name in {"revision", "commit", "order"}:
        assert parse_record(content) == RECORD
    else:
        with pytest.raises(RecordError, match=f"{name} is missing"):
            parse_record(content)


def test_a_record_of_a_file_whose_name_is_no_text_can_be_read_back() -> None:
    record = CoreRecord(**{**json.loads(render_record(RECORD)), "source": os.fsdecode(b"/core\xff")})
    assert parse_record(render_record(record)).source == "/core\\udcff"


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_change_is_stored_in_known_types(kind: str) -> None:
    examples = {change.kind: change for change in CHANGES}
    change = examples.get(kind) or KINDS[kind](**FIELDS.get(kind, {}))
    assert restore_change(json.loads(json.dumps(change.store()))) == change


FIELDS: dict[str, dict[str, Any]] = {
    "directory": {"path": "/etc/psiphon-vpn", "previous": Previous(mode=0o755, uid=0, gid=0)},
    "account": {"declaration": "/usr/lib/sysusers.d/psiphon-vpn.conf", "had_user": True},
    "reread": {"unit": "NetworkManager.service", "verb": "reload"},
}


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "file", "path": "/usr/../../etc/passwd", "mode": 0o644},
        {"kind": "file", "path": "usr/bin/x", "mode": 0o644},
        {"kind": "file", "path": "/usr/bin/x", "mode": True},
        {"kind": "file", "path": "/usr/bin/x", "mode": -1},
        {"kind": "file", "path": "/usr/bin/x\0", "mode": 0},
        {"kind": "file", "path": "/usr/bin/x", "mode": 0, "content": "secret"},
        {"kind": "file", "path": "/x", "mode": 0, "previous": {"mode": 0, "uid": 0, "gid": 0, "content": "?"}},
        {"kind": "file", "path": "/x", "mode": 0, "previous": {"mode": 0}},
        {"kind": "setting", "name": "../../etc/passwd", "value": "0"},
        {"kind": "setting", "name": "/etc/passwd", "value": "0"},
        {"kind": ["file"]},
    ],
)
def test_a_malformed_recorded_change_is_refused_before_anything_is_undone(fields: dict[str, object]) -> None:
    with pytest.raises(StoredError):
        restore_change(fields)


def test_what_is_no_ordinary_file_is_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "intent")
    with pytest.raises(StoredError, match="no regular file"):
        read_stored(tmp_path / "intent", high=10)
    assert load_intent(tmp_path / "intent") is Intent.CONNECTED
    (tmp_path / "link").symlink_to("/dev/zero")
    with pytest.raises(OSError, match="link"):
        read_stored(tmp_path / "link", high=10)
    (tmp_path / "large").write_bytes(b"a" * 11)
    with pytest.raises(StoredError, match="too large"):
        read_stored(tmp_path / "large", high=10)


def test_an_object_is_read_field_by_field() -> None:
    fields = parse_object(b'{"count": 1, "text": "a", "flag": true}')
    assert (take(fields, "count", int), take(fields, "text", str), take(fields, "flag", bool)) == (1, "a", True)
    for name, kind in (("flag", int), ("count", bool), ("count", str), ("none", str)):
        with pytest.raises(StoredError, match=f"{name} is missing or of the wrong kind"):
            take(fields, name, kind)
    with pytest.raises(StoredError, match="twice"):
        parse_object(b'{"a": 1, "a": 2}')


@pytest.mark.lab
def test_a_journal_of_a_real_installation_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    machine = make_machine(tmp_path)
    record = Record(method=Method.CLONE, version="1", stage=Stage.INSTALLED, changes=CHANGES)
    Journal(machine.platform).write(record)
    assert Journal(machine.platform).read() == record
