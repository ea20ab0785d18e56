# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Bundles: what is written can be read back, and hostile ones are refused in one sentence, with nothing written."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from psiphon_vpn.servers import bundle_format
from psiphon_vpn.servers.bundle import Bundle, BundleError, make_bundle, read_bundle, read_bundle_file
from psiphon_vpn.servers.bundle_format import (
    BLOCK,
    CORE,
    LIST,
    MAX_LIST,
    BundleFlaw,
    NotABundleError,
    find_parts,
    render_bundle,
)

parts = st.dictionaries(st.sampled_from([CORE, LIST]), st.binary(min_size=1, max_size=2000), min_size=1)


def find_flaw(content: bytes) -> BundleFlaw:
    with pytest.raises(NotABundleError) as caught:
        find_parts(content)
    return caught.value.flaw


def make_tar(*members: tarfile.TarInfo, content: bytes = b"x" * 700, form: int = tarfile.USTAR_FORMAT) -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=form) as archive:
        for member in members:
            if member.isreg():
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            else:
                archive.addfile(member)
    return output.getvalue()


def name_member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member


@given(parts)
def test_what_is_made_comes_back_and_any_tar_reads_it(content: dict[str, bytes]) -> None:
    made = render_bundle(content)
    assert made == render_bundle(dict(reversed(content.items())))
    assert {name: made[offset : offset + size] for name, (offset, size) in find_parts(made).items()} == content
    with tarfile.open(fileobj=io.BytesIO(made)) as archive:
        for member in archive.getmembers():
            file = archive.extractfile(member)
            assert file is not None
            assert file.read() == content[member.name]
            assert (member.uid, member.gid, member.mtime, member.mode) == (0, 0, 0, 0o644)


@given(st.binary(max_size=3000))
@example(b"")
@example(bytes(BLOCK * 2))
def test_whatever_the_bytes_are_there_is_a_flaw_and_no_other_exception(content: bytes) -> None:
    assert find_flaw(content) in BundleFlaw


@settings(max_examples=400)
@given(parts, st.data())
def test_a_bundle_that_was_changed_names_no_place_outside_itself(
    content: dict[str, bytes], data: st.DataObject
) -> None:
    made = bytearray(render_bundle(content))
    for _change in range(data.draw(st.integers(1, 4))):
        made[data.draw(st.integers(0, len(made) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(made[: data.draw(st.integers(0, len(made)))])
    try:
        found = find_parts(cut)
    except NotABundleError:
        return
    for name, (offset, size) in found.items():
        assert name in {CORE, LIST}
        assert offset % BLOCK == 0
        assert size > 0
        assert offset + size <= len(cut)


@pytest.mark.parametrize(
    "name",
    ["../core", "/core", "core/../../etc/passwd", "/etc/ld.so.preload", "core/", "Core", "core ", "list.exe", "a" * 99],
)
def test_a_member_with_another_name_or_path_is_refused(name: str) -> None:
    assert find_flaw(make_tar(name_member(name))) is BundleFlaw.OTHER_CONTENT


@pytest.mark.parametrize(
    "kind", [tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE]
)
def test_a_link_a_device_and_a_directory_are_refused(kind: bytes) -> None:
    assert find_flaw(make_tar(name_member(CORE, kind, "/etc/shadow"))) is BundleFlaw.OTHER_CONTENT


def test_long_names_and_headers_of_other_forms_are_refused() -> None:
    long = name_member("x/" * 90 + CORE)
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        assert find_flaw(make_tar(long, form=form)) in {BundleFlaw.OTHER_CONTENT, BundleFlaw.NOT_A_BUNDLE}
    member = name_member(CORE)
    member.pax_headers = {"path": "/etc/passwd"}
    assert find_flaw(make_tar(member, form=tarfile.PAX_FORMAT)) is BundleFlaw.OTHER_CONTENT


def test_sizes_that_are_negative_huge_or_not_octal_are_refused() -> None:
    made = bytearray(render_bundle({CORE: b"x"}))
    for field, flaw in (
        (b"-0000000001\0", BundleFlaw.DAMAGED),
        (b"77777777777\0", BundleFlaw.TOO_LARGE),
        (b"\x80" + b"\xff" * 11, BundleFlaw.DAMAGED),
        (b"00000000000\0", BundleFlaw.EMPTY),
        (b"00000010000\0", BundleFlaw.TRUNCATED),
        (b"           \0", BundleFlaw.DAMAGED),
    ):
        made[124:136] = field
        made[148:156] = b" " * 8
        made[148:156] = f"{sum(made[:BLOCK]):06o}\0 ".encode()
        assert find_flaw(bytes(made)) is flaw


def test_a_part_that_is_there_twice_and_what_follows_the_end_are_refused() -> None:
    assert find_flaw(make_tar(name_member(CORE), name_member("./core"))) is BundleFlaw.TWICE
    assert find_flaw(render_bundle({CORE: b"x"}) + b"more") is BundleFlaw.OTHER_CONTENT


def test_nothing_is_inflated_so_a_bomb_is_only_a_small_file() -> None:
    bomb = gzip.compress(bytes(64 << 20))
    assert find_flaw(bomb) is BundleFlaw.COMPRESSED
    with pytest.raises(NotABundleError):
        render_bundle({LIST: bytes(MAX_LIST + 1)})


def test_an_answer_of_a_reader_that_was_taken_over_leads_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    for answer in (
        b"",
        b"[]",
        b'{"parts": {"core": [0, 99999999999]}}',
        b'{"parts": {"core": [-1, 5]}}',
        b'{"parts": {"core": [0, true]}}',
        b'{"parts": {"../x": [0, 1]}}',
        b'{"parts": {"core": "x"}}',
        b'{"parts": {}}',
        b'{"flaw": "none"}',
        b'{"parts": 3}',
    ):
        monkeypatch.setattr("psiphon_vpn.servers.bundle.run_unprivileged", lambda *_rest, said=answer: said)
        with pytest.raises(BundleError):
            read_bundle(b"content")


def test_a_bundle_is_read_by_a_process_without_privileges(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    path.write_bytes(make_bundle(core=b"a core", server_list=b"a list"))
    assert read_bundle_file(path) == Bundle(core=b"a core", server_list=b"a list")
    path.write_bytes(make_bundle(core=None, server_list=b"a list"))
    assert read_bundle_file(path) == Bundle(core=None, server_list=b"a list")


@pytest.mark.parametrize(
    "content", [b"<html>sign in</html>", b"", b"\x7fELF" + bytes(600), gzip.compress(b"x", mtime=0)]
)
def test_another_file_is_refused_with_a_reason_and_a_step(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bundle"
    path.write_bytes(content)
    with pytest.raises(BundleError) as caught:
        read_bundle_file(path)
    assert caught.value.why
    assert caught.value.next_step


def test_what_is_no_ordinary_file_is_not_waited_for(tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        read_bundle_file(Path("/dev/zero"))
    with pytest.raises(BundleError):
        read_bundle_file(tmp_path)
    with pytest.raises(BundleError):
        read_bundle_file(tmp_path / "missing")
    with pytest.raises(BundleError):
        make_bundle(core=None, server_list=None)


def test_the_readers_answer_is_small_whatever_it_reads() -> None:
    assert len(bundle_format.work((), render_bundle({CORE: bytes(100000), LIST: b"x"}))) < 200
