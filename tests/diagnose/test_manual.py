# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of checks in the documentation is the real one."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from psiphon_vpn.cli.main import cli
from psiphon_vpn.diagnose.manual import render_manual
from psiphon_vpn.diagnose.registry import CHECKS

ROOT = Path(__file__).parents[2]
COMMAND = re.compile(r"sudo psiphon-vpn ([a-z]+)")


@pytest.mark.requirement("R15")
def test_the_table_of_checks_in_the_documentation_is_the_real_one() -> None:
    assert (ROOT / "docs" / "diagnose.md").read_text(encoding="utf-8") == render_manual()


def test_every_check_has_an_id_of_its_own_and_a_next_step_that_is_a_sentence() -> None:
    assert len({check.id for check in CHECKS}) == len(CHECKS)
    for check in CHECKS:
        assert re.fullmatch(r"[a-z]+\.[a-z0-9-]+", check.id)
        assert check.title
        assert not check.title.endswith(".")
        assert len(check.title) <= 72
        assert check.next_step


def test_every_command_that_a_next_step_names_exists() -> None:
    context = click.Context(cli)
    named = {name for check in CHECKS for name in COMMAND.findall(check.next_step)}
    assert named
    assert {name for name in named if cli.get_command(context, name) is None} == set()
