# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Completions for bash, zsh and fish. They ask the program itself, so they know all its commands."""

from __future__ import annotations

from typing import Final

import click
from click.shell_completion import get_completion_class

from psiphon_vpn import PROGRAM

SHELLS: Final = ("bash", "zsh", "fish")
_VARIABLE: Final = "_PSIPHON_VPN_COMPLETE"
"""As click derives it from the program's name."""


def render_completions(commands: click.Group) -> dict[str, str]:
    """The scripts, by shell, for the program's commands."""
    scripts = {}
    for shell in SHELLS:
        kind = get_completion_class(shell)
        assert kind is not None
        completion = kind(commands, {}, PROGRAM, _VARIABLE)
        # Not source(): for bash it runs this machine's bash to find its version.
        scripts[shell] = (completion.source_template % completion.source_vars()).strip() + "\n"
    return scripts
