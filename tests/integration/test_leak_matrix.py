# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A representative part of the leak test's matrix: attacks of every kind, in states with and without a daemon."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from psiphon_lab.leaktest.command import choose_attacks
from psiphon_lab.leaktest.matrix import run_matrix
from psiphon_lab.leaktest.model import Mode
from psiphon_lab.leaktest.verdict import Kind

pytestmark = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="needs root and namespaces")]

ATTACKS = ("A01", "A03", "A04", "A05", "A06", "A07", "A09", "A14", "A15", "A19", "A20", "A22")
MODES = (Mode.BOOT, Mode.OPEN, Mode.DAEMON_KILLED, Mode.FLUSHED)


@pytest.mark.timeout(1200)  # seconds: some sixty attacks in parallel
@pytest.mark.requirement("R1", "R2", "R4", "B4", "B5")
def test_known_leaks_hold_in_states_with_and_without_a_daemon(tmp_path: Path) -> None:
    chosen = [attack for attack in choose_attacks(list(ATTACKS)) if attack.id in ATTACKS]
    result = run_matrix(chosen, MODES, jobs=4, recordings=tmp_path)
    wrong = [(cell["attack"], cell["state"], cell["reason"]) for cell in result.cells if cell["verdict"] != Kind.HELD]
    assert not wrong
    assert len(result.cells) == len(ATTACKS) * len(MODES)
    assert result.frames
    assert len(list(tmp_path.glob("*.pcapng"))) == len(ATTACKS) * (len(MODES) + 1)


def test_what_ends_a_worker_ends_the_run(tmp_path: Path) -> None:
    def fail(_cell: object) -> None:
        raise ArithmeticError("while a cell was noted")

    with pytest.raises(ArithmeticError, match="while a cell was noted"):
        run_matrix(choose_attacks(["A01"]), [Mode.BOOT], jobs=1, recordings=tmp_path, on_cell=fail)
