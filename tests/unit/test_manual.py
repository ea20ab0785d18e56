# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Manual pages and completions: made from the program, so that they cannot drift from it."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from psiphon_vpn.cli.main import cli
from psiphon_vpn.config import Settings
from psiphon_vpn.core import options
from psiphon_vpn.system.completions import SHELLS, render_completions
from psiphon_vpn.system.manual import COMMANDS_PAGE, CORE_FIELD, SETTINGS_PAGE, describe_settings, escape, render_manual

ROOT = Path(__file__).parents[2]
PAGES = render_manual(cli)


def test_every_command_and_every_option_is_in_the_manual() -> None:
    page = PAGES[COMMANDS_PAGE]
    for name, command in cli.commands.items():
        heading = f"\n.SS {escape(name)}"
        assert (heading in page) != command.hidden
        context = click.Context(command, info_name=name)
        for parameter in command.get_params(context):
            record = parameter.get_help_record(context)
            if record is not None and not command.hidden:
                assert escape(record[0]) in page


def test_a_hidden_command_is_not_in_the_manual(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = click.Command("system-secret", hidden=True, help="For packages.")
    monkeypatch.setitem(cli.commands, "system-secret", secret)
    assert escape("system-secret") not in render_manual(cli)[COMMANDS_PAGE]


def test_every_setting_is_in_the_manual_with_its_meaning() -> None:
    described = describe_settings()
    fields = {field.name for field in dataclasses.fields(Settings)}
    assert set(described) == fields
    for name in fields - {CORE_FIELD}:
        assert f"\n.B {escape(name)}\n" in PAGES[SETTINGS_PAGE]
    for name in options.ALLOWED:
        assert escape(name) in PAGES[SETTINGS_PAGE]


@pytest.mark.parametrize("name", [COMMANDS_PAGE, SETTINGS_PAGE])
def test_groff_has_no_complaint_about_a_page(name: str) -> None:
    if shutil.which("groff") is None:
        pytest.skip("groff is not here")
    done = subprocess.run(
        ["groff", "-man", "-ww", "-z", "-Tutf8"],
        input=PAGES[name],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("shell", SHELLS)
def test_the_shells_can_read_their_completions(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not here")
    file = tmp_path / "completion"
    file.write_text(render_completions(cli)[shell])
    done = subprocess.run([shell, "-n", str(file)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_bash_completes_the_commands(tmp_path: Path) -> None:
    program = tmp_path / "psiphon-vpn"
    program.write_text(f"#!/bin/sh\nPYTHONPATH={ROOT / 'src'} exec {sys.executable} -m psiphon_vpn\n")
    program.chmod(0o755)
    script = tmp_path / "completion"
    script.write_text(render_completions(cli)["bash"])
    code = f". {script}; COMP_WORDS=(psiphon-vpn sta); COMP_CWORD=1; "
    code += f'_psiphon_vpn_completion {program}; echo "${{COMPREPLY[*]}}"'
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert {"start", "status"} <= set(done.stdout.split()), done.stderr
    assert "demo" not in done.stdout.split()
