# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The pure parts of the booted laboratory."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from psiphon_lab.booted.core_file import build_trampoline
from psiphon_lab.booted.kernel_state import KernelState
from psiphon_lab.booted.trees import DEBIAN_12, MIRROR_VARIABLE, choose_mirror, find_mirror
from psiphon_lab.namespace import LabError


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="a program for x86-64")
def test_the_trampoline_becomes_the_other_program_with_arguments_and_environment(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text('#!/bin/sh\necho "$0|$1|$2|$#|$WORD"\nexit 5\n')
    script.chmod(0o755)
    program = tmp_path / "program"
    program.write_bytes(build_trampoline(str(script)))
    program.chmod(0o755)
    done = subprocess.run(
        [str(program), "one", "two words"],
        env={"WORD": "kept"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.stdout, done.returncode) == (f"{script}|one|two words|2|kept\n", 5)
    script.unlink()
    assert subprocess.run([str(program)], check=False, timeout=60).returncode == 127


def test_the_mirror_is_the_main_archive_of_debian_that_apt_knows() -> None:
    listed = """\
 cloud main https://packages.example/apt/
Debian bookworm-security main http://mirror.example/debian-security/
Debian bookworm contrib http://mirror.example/debian/
Other bookworm main http://other.example/debian/
Debian bookworm main http://mirror.example/debian/
"""
    assert choose_mirror(listed) == "http://mirror.example/debian/"
    # Before the first `apt-get update`, apt does not know an archive's origin.
    assert choose_mirror(" bookworm main http://mirror.example/debian/\n") == "http://mirror.example/debian/"


@pytest.mark.parametrize(
    "listed", ["", "Debian bookworm main file:/srv/debian/\n", "Ubuntu noble main http://u.example/ubuntu/\n"]
)
def test_without_an_archive_of_debian_a_sentence_says_how_to_name_one(listed: str) -> None:
    with pytest.raises(LabError, match=MIRROR_VARIABLE):
        choose_mirror(listed)


def test_a_mirror_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MIRROR_VARIABLE, "http://named.example/debian")
    assert find_mirror() == "http://named.example/debian"


def test_another_list_of_packages_is_another_tree() -> None:
    from dataclasses import replace

    assert replace(DEBIAN_12, packages=(*DEBIAN_12.packages, "more")).key != DEBIAN_12.key
    assert replace(DEBIAN_12, packages=DEBIAN_12.packages[::-1]).key == DEBIAN_12.key


def make_state(**changes: object) -> KernelState:
    values: dict[str, object] = {
        "ruleset": "",
        "rules": ("0:\tfrom all lookup local", "32766:\tfrom all lookup main", "32767:\tfrom all lookup default"),
        "routes": ("local ::1 dev lo table local proto kernel",),
        "links": ("eth0", "eth1", "lo"),
        "addresses": ("eth0@if2 DOWN", "lo UNKNOWN 127.0.0.1/8"),
        "filters": (),
        "settings": (),
    }
    return KernelState(**(values | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {"ruleset": "table inet any {\n}"},
        {"rules": ("0:\tfrom all lookup local", "5076:\tfrom all lookup 20595")},
        {"routes": ("unreachable default dev lo table 20595",)},
        {"routes": ("192.0.2.0/25 dev eth0",)},
        {"links": ("PsiphonTUN", "eth0", "eth1", "lo")},
        {"addresses": ("eth0@if2 UP 192.0.2.10/25",)},
        {"filters": ("qdisc clsact ffff: dev eth0 parent ffff:fff1",)},
    ],
)
def test_a_kernel_with_anything_left_is_not_as_after_power_on(changes: dict[str, object]) -> None:
    assert make_state().is_pristine
    assert not make_state(**changes).is_pristine
    assert make_state().list_differences(make_state(**changes))
    assert not make_state().list_differences(make_state())
