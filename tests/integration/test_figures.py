# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What the figures measure happens each time. Their values are reported, and judged by people.

The goals and what was found are in docs/performance.md.
"""

from __future__ import annotations

import os

import pytest
from tests.conftest import Figure

from psiphon_lab.bench.families import FAMILIES
from psiphon_lab.bench.lifecycle import REOPENED
from psiphon_lab.bench.runner import run_families
from psiphon_lab.bench.sides import open_product
from psiphon_lab.bench.steps import QUICK_ROUNDS, Settings
from psiphon_lab.bench.times import measure_changed, move
from psiphon_lab.bench.view import render_all

pytestmark = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="needs root and namespaces")]

CHANGES = 7
"""Of network, in a row: after the fifth the service waits until it holds."""


@pytest.mark.requirement("R6", "R17")
@pytest.mark.timeout(1200)
def test_it_carries_closes_comes_back_and_idles_and_what_that_takes_is_reported(
    capsys: pytest.CaptureFixture[str],
) -> None:
    chosen = [family for family in FAMILIES if family.name != "growth"]
    settings = Settings(rounds=QUICK_ROUNDS, quick=True)
    report = run_families(chosen, settings, tell=lambda _name, _so_far, _left: None)
    with capsys.disabled():
        print("\n" + "\n".join(render_all(report)))  # noqa: T201
    assert report.failures == {}
    measured = {figure.title.family for figure in report.figures.values()}
    assert measured == {family.name for family in chosen}
    names = {figure.title.name: figure for figure in report.figures.values()}
    for name in REOPENED:
        assert len(names[name].product) == len(names[name].base) == QUICK_ROUNDS, name


@pytest.mark.requirement("R6", "R17")
def test_each_of_many_changes_of_network_is_followed_by_a_page_and_how_soon_is_reported(figure: Figure) -> None:
    with open_product(None, load=False) as product:
        found = [measure_changed(product, move) for _ in range(CHANGES)]
        assert ": unstable" in product.machine.read_log(), "the network changed often enough to be called unstable"
    assert len(found) == CHANGES
    figure("the first change of network, from its announcement to a page, s", found[0] / 1000)
    figure("the last of seven in a row, s", found[-1] / 1000)
