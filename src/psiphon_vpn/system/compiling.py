# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Has the installed program compiled by its own interpreter (`byte_code`)."""

from __future__ import annotations

import logging
from typing import Final

from psiphon_vpn.run import CommandError, run
from psiphon_vpn.system.layout import Layout

log = logging.getLogger(__name__)

SCRIPT: Final = "psiphon_vpn/system/byte_code.py"
SECONDS: Final = 300.0
_MAX_LINE: Final = 4096


def compile_installed(layout: Layout) -> bool:
    """Compile what is installed, as far as it is not compiled. Never raises: without byte code all works, more slowly.

    Returns:
        Whether the program is compiled now.
    """
    python = find_launching_interpreter(layout)
    script = layout.python_dir / SCRIPT
    if python is None or not script.is_file() or not layout.program_manifest.is_file():
        return False
    try:
        run([python, "-ISB", str(script), str(layout.root)], timeout=SECONDS)
    except CommandError as error:
        log.debug("the program is not compiled: %s", error.why)
        return False
    return True


def find_launching_interpreter(layout: Layout) -> str | None:
    """The interpreter that the installed launcher names in its first line; None if there is none."""
    try:
        with layout.command.open("rb") as file:
            first = file.readline(_MAX_LINE)
    except OSError:
        return None
    words = first.decode("utf-8", "replace").removeprefix("#!").split()
    if not first.startswith(b"#!") or not words:
        return None
    found = layout.locate(words[0]) if words[0].startswith(str(Layout().program_dir)) else Layout().locate(words[0])
    return str(found) if found.is_file() else None
