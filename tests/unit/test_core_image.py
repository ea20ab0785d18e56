# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The copy of the core that is started: sealed, and exactly what was checked."""

from __future__ import annotations

import fcntl
import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cores import make_elf, make_store, pin, sha256

from psiphon_vpn.core import image
from psiphon_vpn.core.flaws import CoreFlaw, CoreFlawError
from psiphon_vpn.core.image import GivenCore, RecordedCore, seal_core
from psiphon_vpn.system.layout import Layout

GOOD, EVIL = b"#!/bin/sh\necho good\n", b"#!/bin/sh\necho evil\n"


def make_script(tmp_path: Path, content: bytes = GOOD) -> GivenCore:
    binary = tmp_path / "core"
    binary.write_bytes(content)
    binary.chmod(0o755)
    return GivenCore(binary=binary, sha256=sha256(GOOD))


def put_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def run_image(descriptor: int) -> str:
    return subprocess.run(
        [f"/proc/self/fd/{descriptor}"], pass_fds=[descriptor], capture_output=True, text=True, check=True, timeout=60
    ).stdout


@pytest.mark.requirement("R13")
def test_the_copy_can_be_executed_and_by_nobody_changed(tmp_path: Path) -> None:
    source = make_script(tmp_path)
    descriptor = seal_core(source)
    try:
        assert run_image(descriptor) == "good\n"
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
        assert seals == fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        with pytest.raises(OSError):
            os.write(descriptor, b"x")
        # Nobody who opens it again can write to it either, not even root.
        again = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR)
        for change in (
            lambda: os.pwrite(again, b"x", 0),
            lambda: os.ftruncate(again, 1),
            lambda: os.ftruncate(again, 4096),
        ):
            with pytest.raises(PermissionError):
                change()
        os.close(again)
        assert not os.get_inheritable(descriptor)
        source.binary.write_bytes(EVIL)
        assert run_image(descriptor) == "good\n"
    finally:
        os.close(descriptor)


@pytest.mark.requirement("R13")
def test_while_its_owner_keeps_writing_to_the_file_only_the_right_program_is_ever_started(tmp_path: Path) -> None:
    source = make_script(tmp_path)
    done = threading.Event()

    def keep_changing() -> None:
        with source.binary.open("r+b", buffering=0) as file:
            while not done.is_set():
                for content in (EVIL, GOOD):
                    os.pwrite(file.fileno(), content, 0)
                time.sleep(0)

    writer = threading.Thread(target=keep_changing)
    writer.start()
    outputs: set[str] = set()
    refused = 0
    try:
        end = time.monotonic() + 10
        while (len(outputs) < 1 or refused < 1) and time.monotonic() < end:
            try:
                descriptor = seal_core(source)
            except CoreFlawError as error:
                assert error.flaw is CoreFlaw.MISMATCH
                refused += 1
                continue
            outputs.add(run_image(descriptor))
            os.close(descriptor)
    finally:
        done.set()
        writer.join()
    assert outputs == {"good\n"}
    assert refused, "the writer interfered at least once"


@pytest.mark.requirement("R13")
@pytest.mark.parametrize(
    ("change", "flaw"),
    [
        (lambda path: path.write_bytes(EVIL), CoreFlaw.MISMATCH),
        (lambda path: path.write_bytes(GOOD[:-1]), CoreFlaw.MISMATCH),
        (lambda path: path.write_bytes(GOOD + b"\n"), CoreFlaw.MISMATCH),
        (lambda path: path.write_bytes(b""), CoreFlaw.MISMATCH),
        (lambda path: path.chmod(0o644), CoreFlaw.UNREADABLE),
        (lambda path: path.unlink(), CoreFlaw.UNREADABLE),
        (lambda path: (path.unlink(), path.mkdir()), CoreFlaw.UNREADABLE),
        (put_pipe, CoreFlaw.UNREADABLE),
        (lambda path: (path.rename(f"{path}.x"), path.symlink_to(f"{path}.x")), CoreFlaw.UNREADABLE),
    ],
    ids=["changed", "shorter", "longer", "empty", "no program", "gone", "a directory", "a pipe", "a link"],
)
def test_no_copy_is_made_of_a_file_that_is(change: Callable[[Path], object], flaw: CoreFlaw, tmp_path: Path) -> None:
    source = make_script(tmp_path)
    change(source.binary)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(CoreFlawError) as caught:
        seal_core(source)
    assert caught.value.flaw is flaw
    assert os.listdir("/proc/self/fd") == before, "every descriptor is closed"


@pytest.mark.requirement("R13")
def test_the_installed_core_is_started_by_its_record_and_not_by_another(tmp_path: Path) -> None:
    old, new = make_elf(b"old"), make_elf(b"new")
    store = make_store(tmp_path / "root", pin(old), pin(new, order=2))
    layout = Layout(root=tmp_path / "root")
    source = RecordedCore(record=layout.core_record, owner=os.geteuid())
    with pytest.raises(CoreFlawError) as caught:
        seal_core(source)
    assert caught.value.flaw is CoreFlaw.NOT_INSTALLED
    for content in (old, new):
        (tmp_path / "file").write_bytes(content)
        store.install_file(tmp_path / "file")
        descriptor = seal_core(source)
        assert os.pread(descriptor, 1 << 20, 0) == content
        os.close(descriptor)
    # The other core of the store is genuine too, but not the one of this record.
    layout.core_binary.write_bytes(old)
    with pytest.raises(CoreFlawError) as caught:
        seal_core(source)
    assert caught.value.flaw is CoreFlaw.MISMATCH
    layout.core_record.unlink()
    with pytest.raises(CoreFlawError) as caught:
        seal_core(source)
    assert caught.value.flaw is CoreFlaw.NOT_INSTALLED


def test_a_huge_file_is_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "MAX_CORE_SIZE", 4)
    with pytest.raises(CoreFlawError) as caught:
        seal_core(make_script(tmp_path))
    assert caught.value.flaw is CoreFlaw.TOO_LARGE


def test_a_kernel_that_knows_no_flag_for_executing_is_asked_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux before 6.3 answers EINVAL to what it does not know; one that forbids execution answers EACCES."""
    real = os.memfd_create

    def old_kernel(name: str, flags: int) -> int:
        if flags & 0x10:
            raise OSError(22, "Invalid argument")
        return real(name, flags)

    monkeypatch.setattr(os, "memfd_create", old_kernel)
    descriptor = seal_core(make_script(tmp_path))
    assert run_image(descriptor) == "good\n"
    os.close(descriptor)

    def forbid(name: str, flags: int) -> int:
        raise OSError(13, "Permission denied")

    monkeypatch.setattr(os, "memfd_create", forbid)
    with pytest.raises(CoreFlawError, match="memfd_noexec") as caught:
        seal_core(make_script(tmp_path))
    assert caught.value.flaw is CoreFlaw.SEALING
