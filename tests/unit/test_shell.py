# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Every shell script that the project ships or renders, as shellcheck reads it, and without dead code."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from psiphon_vpn.system.units import render_generator, render_guard_script, render_sleep_script, render_units

ROOT = Path(__file__).parents[2]
FILES = [
    path
    for path in sorted((*ROOT.glob("*"), *(ROOT / "packaging").glob("*"), *(ROOT / ".ci").glob("*")))
    if path.is_file() and (path.suffix == ".sh" or path.read_bytes().startswith((b"#!/bin/sh", b"#!/bin/bash")))
]
COMMAND = re.compile(r"^Exec\w+=/bin/sh -c '(.*)'$", re.MULTILINE)
FUNCTION = re.compile(r"^(\w+)\(\) *\{", re.MULTILINE)


def unescape(line: str) -> str:
    """What the shell gets from a unit's command line (systemd.service(5), "Command lines")."""
    return line.replace("\\'", "'").replace("\\\\", "\\").replace("%%", "%").replace("$$", "$")


def collect_scripts() -> dict[str, str]:
    scripts = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in FILES}
    scripts["guard"] = render_guard_script()
    scripts["sleep"] = render_sleep_script()
    scripts["generator"] = render_generator()
    for unit, text in render_units().items():
        for number, line in enumerate(COMMAND.findall(text)):
            scripts[f"{unit} {number}"] = f"#!/bin/sh\n{unescape(line)}\n"
    return scripts


SCRIPTS = collect_scripts()
TOGETHER = "\n".join(SCRIPTS.values())
"""The setup script sources the list of packages."""


def test_the_scripts_are_found() -> None:
    names = {
        "Psiphon-Linux-VPN-Service-Setup.sh",
        "packaging/commands.sh",
        "packaging/preremove.sh",
        ".ci/run",
        "guard",
    }
    assert names <= set(SCRIPTS)
    assert {name.split(" ")[0] for name in SCRIPTS} >= {"psiphon-killswitch-failed.service", "psiphon-vpn.service"}


def run_shellcheck(text: str) -> str:
    """What shellcheck finds, of any severity."""
    done = subprocess.run(
        ["shellcheck", "--severity=style", "--external-sources", "--format=gcc", "-"],
        input=text, capture_output=True, text=True, check=False, cwd=ROOT, timeout=60,
    )  # fmt: skip
    return done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not here")
@pytest.mark.parametrize("name", SCRIPTS)
def test_shellcheck_finds_nothing(name: str) -> None:
    assert not run_shellcheck(SCRIPTS[name])


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not here")
def test_shellcheck_would_find_something() -> None:
    assert "SC2086" in run_shellcheck('#!/bin/sh\nname="a b"\ntouch $name\n')


def find_dead(text: str, *, callers: str) -> list[str]:
    """The functions that nothing calls."""
    code = re.sub(r"(?:^|(?<=\s))#.*", "", callers, flags=re.MULTILINE)
    found = FUNCTION.findall(text)
    return [name for name in found if len(re.findall(rf"(?<![\w.$/-]){name}(?![\w.=/-])", code)) < 2]


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_function_of_a_script_is_called_by_nobody(name: str) -> None:
    assert not find_dead(SCRIPTS[name], callers=TOGETHER)


def test_a_function_that_nobody_calls_would_be_found() -> None:
    text = "one() { two >one.txt; }\ntwo() { :; } # one\n"
    assert find_dead(text, callers=text) == ["one"]
