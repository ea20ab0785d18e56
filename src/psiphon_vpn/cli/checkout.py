# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether this program runs from a checkout, where it has a laboratory, tests, and can install itself."""

from pathlib import Path
from typing import Final

PROJECT_ROOT: Final = Path(__file__).resolve().parents[3]
"""The checkout, if there is one."""


def is_checkout() -> bool:
    """Whether this program runs from a checkout, rather than as an installed copy."""
    return (PROJECT_ROOT / "pyproject.toml").is_file()
