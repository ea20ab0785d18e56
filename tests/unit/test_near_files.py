# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The files that a guest has in memory are those of this machine, and complete: a program and all its libraries."""

from __future__ import annotations

from pathlib import Path

from psiphon_lab.guest.near_files import ROOT, list_near_files


def test_each_near_file_is_what_this_machine_has_in_its_place() -> None:
    near = list_near_files()
    for name, source in near.items():
        place = ROOT / name
        assert (str(place.readlink()) if isinstance(source, str) else place.resolve()) == source
        if isinstance(source, str):
            target = (place.parent / source).resolve()
            assert not target.is_relative_to(ROOT) or str(target.relative_to(ROOT)) in near


def test_the_shell_is_near_with_the_c_library() -> None:
    names = {Path(name).name for name in list_near_files()}
    assert {"sh", "libc.so.6"} <= names
