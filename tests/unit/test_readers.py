# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Who may read the status without being root: the users in root's list, at first the one who installed the service."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.scratch_machine import ACTING, PAYLOAD, make_machine

from psiphon_vpn.service.readers import render_acl
from psiphon_vpn.system.install import install_clone, uninstall
from psiphon_vpn.system.person import find_person, render_readers
from psiphon_vpn.system.reader_list import MAX_READERS, load_readers, parse_readers


def test_a_list_has_users_by_name_and_number() -> None:
    text = "# comment\n1000 # me\n\n  root\nnobody-here\n99999999999\n-1\n\u00b2\n"
    assert parse_readers(text.encode()) == {0, 1000}
    assert parse_readers(render_readers(1000).encode()) == {1000}
    assert parse_readers(render_readers(None).encode()) == frozenset()
    assert len(parse_readers("\n".join(map(str, range(1000))).encode())) == MAX_READERS


@given(content=st.binary(max_size=300))
def test_any_list_can_be_read(content: bytes) -> None:
    readers = parse_readers(content)
    assert all(0 <= uid < 2**32 - 1 for uid in readers)
    assert len(render_acl(readers)) == 4 + 8 * (4 + len(readers))


@pytest.mark.lab
@pytest.mark.requirement("R24")
def test_a_list_that_others_than_root_could_have_written_names_nobody(tmp_path: Path) -> None:
    path = tmp_path / "readers"
    assert load_readers(path) == frozenset()
    path.write_text("1000\n")
    path.chmod(0o644)
    assert load_readers(path) == {1000}
    path.chmod(0o664)
    assert load_readers(path) == frozenset()
    path.chmod(0o644)
    os.chown(path, 990, 990)
    assert load_readers(path) == frozenset()
    path.unlink()
    path.symlink_to("/etc/passwd")
    assert load_readers(path) == frozenset()
    path.unlink()
    os.mkfifo(path)
    assert load_readers(path) == frozenset()


def test_the_person_is_who_asked_root_and_else_who_logged_in(tmp_path: Path) -> None:
    login = tmp_path / "loginuid"
    login.write_text("1001")
    assert find_person({"SUDO_UID": "1000"}, login) == 1000
    assert find_person({"PKEXEC_UID": "1002"}, login) == 1002
    assert find_person({"SUDO_UID": "0"}, login) == 1001
    assert find_person({"SUDO_UID": "1000; rm"}, login) == 1001
    login.write_text("4294967295")
    assert find_person({}, login) is None
    assert find_person({}, tmp_path / "none") is None


@pytest.mark.lab
@pytest.mark.usefixtures("quick_disk")
def test_an_installation_lets_who_ran_it_look_and_keeps_what_root_wrote_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = make_machine(tmp_path)
    before = machine.read_all()
    monkeypatch.setenv("SUDO_UID", "1000")
    install_clone(machine.platform, PAYLOAD, ACTING, say=lambda _line: None)
    path = machine.platform.layout.readers
    assert load_readers(path) == {1000}
    path.write_text("1001\n")
    monkeypatch.setenv("SUDO_UID", "1002")
    install_clone(machine.platform, (*PAYLOAD[:1], *PAYLOAD[2:]), ACTING, say=lambda _line: None)
    assert load_readers(path) == {1001}
    uninstall(machine.platform, say=lambda _line: None)
    assert machine.read_all() == before
