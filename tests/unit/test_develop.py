# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What the command `test` runs."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from psiphon_vpn.cli.develop import demo, leaktest, plan_tests
from psiphon_vpn.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("fast", [False, True])
def test_what_is_left_out_side_by_side_is_run_one_by_one(fast: bool) -> None:
    together, alone = plan_tests(fast=fast, pytest_args=()).values()
    left_out = {argument.removeprefix("--ignore=") for argument in together if argument.startswith("--ignore=")}
    assert all((ROOT / path).exists() for path in left_out)
    assert left_out - set(alone) == ({"tests/booted", "tests/guest", "tests/vm"} if fast else set())


def test_the_long_tests_run_only_if_somebody_asks_for_them() -> None:
    for kernels in (False, True):
        alone = plan_tests(fast=False, kernels=kernels, pytest_args=())["pytest, one by one"]
        assert ("not kernels" in alone) is not kernels


def test_what_somebody_asks_for_goes_to_pytest_as_it_is() -> None:
    assert plan_tests(fast=False, pytest_args=("-k", "socks")) == {"pytest": ["-k", "socks"]}
    assert plan_tests(fast=True, pytest_args=("-x",)) == {
        "pytest": ["--ignore=tests/booted", "--ignore=tests/guest", "--ignore=tests/vm", "-x"]
    }


@pytest.mark.parametrize("command", [demo, leaktest])
@pytest.mark.parametrize("option", ["--core", "--server"])
def test_a_real_core_needs_a_real_server_and_the_other_way_round(command: click.Command, option: str) -> None:
    result = CliRunner().invoke(command, [option, __file__])
    assert isinstance(result.exception, UserError)
    assert "Give --core and --server together." in result.exception.next_step


def test_chaos_has_the_stand_in_core_alone() -> None:
    result = CliRunner().invoke(leaktest, ["--chaos", "--core", __file__, "--server", __file__])
    assert result.exit_code == 2
    assert "--chaos" in result.output
