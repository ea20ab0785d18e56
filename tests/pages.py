# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes every generated page anew: `python -m tests.pages`. One that is out of date turns a test red.

Pages made from runs are written from the results that the project keeps; new ones are given to the page's own program.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

from psiphon_vpn.cli.stranded import render_stranded

PROGRAMS: Final = (
    "psiphon_vpn.diagnose.manual",
    "tests.computers_page",
    "tests.kernels_page",
    "tests.leaks_page",
    "tests.modules_page",
    "tests.performance_page",
    "tests.permits_page",
    "tests.requirements_table",
    "tests.states_picture",
    "tests.ways_page",
)
"""Each writes its pages when it is run without arguments."""


STRANDED: Final = Path(__file__).parents[1] / "docs" / "stranded.md"


def main() -> None:
    """Write all of them. Raises CalledProcessError if a program fails."""
    STRANDED.write_text(render_stranded(), encoding="utf-8")
    for program in PROGRAMS:
        subprocess.run([sys.executable, "-m", program], check=True)


if __name__ == "__main__":
    main()
