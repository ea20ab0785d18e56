# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A few cells of the leak test on each kernel: without the lock everything is seen, with the boot lock nothing leaks.

The whole matrix is `test --kernels`, or `leaktest --machine`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest
from tests.guest.conftest import find_kernel_or_skip

from psiphon_lab.attacks import list_modules, load_attacks
from psiphon_lab.fork_server import ForkServer
from psiphon_lab.guest.kernels import NAMED
from psiphon_lab.leaktest.cell import Cell
from psiphon_lab.leaktest.matrix import conclude_all
from psiphon_lab.leaktest.model import EGRESS, Mode
from psiphon_lab.leaktest.results_file import Subject
from psiphon_lab.leaktest.verdict import Kind
from psiphon_lab.leaktest.virtual_machine import open_virtual_machine
from psiphon_lab.leaktest.worker import Told, play_state

PLAYED: Final = ("A01", "A04")
"""Programs, which every kernel must stop, and raw frames, which needs the egress hook."""


@pytest.mark.parametrize("name", NAMED)
def test_the_boot_lock_holds_what_this_kernel_can_hold(name: str, tmp_path: Path) -> None:
    kernel = find_kernel_or_skip(name)
    cells: list[Cell] = []

    def take(reported: Told) -> None:
        assert isinstance(reported, Cell)
        cells.append(reported)

    with ForkServer(list_modules()) as fork_server, open_virtual_machine(kernel, fork_server) as (outside, machine):
        missing = machine.find_missing()
        for mode in (Mode.CONTROL, Mode.BOOT):
            play_state(outside, machine, PLAYED, mode, recordings=tmp_path, tell=take)
    attacks = [attack for attack in load_attacks() if attack.id in PLAYED]
    tested = Subject(machine=f"vm:{name}", kernel=kernel.version, version="", missing=missing)
    result = conclude_all(attacks, [Mode.BOOT], cells, seconds=0.0, tested=tested)
    found = {cell["attack"]: (cell["verdict"], cell["reason"]) for cell in result.cells}
    assert found["A01"][0] == Kind.HELD, found
    assert found["A04"][0] == (Kind.WEAKER if EGRESS in missing else Kind.HELD), found
