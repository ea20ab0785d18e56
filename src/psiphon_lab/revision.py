# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Which state of the project produced a result: its version, and the commit of the checkout."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from psiphon_vpn.i18n import _

UNKNOWN: Final = "unknown"
"""The commit where git says nothing, and of results that were written before commits were recorded."""


@functools.cache
def read_commit() -> str:
    """The commit of this checkout as eight or more digits, with a "+" if a file of it was changed since; or UNKNOWN.

    It is read once: what this process imported does not change with the checkout.
    """
    place = str(Path(__file__).parent)
    argv = ["git", "-C", place, "describe", "--always", "--dirty=+", "--abbrev=8", "--exclude=*"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return UNKNOWN
    return done.stdout.strip() or UNKNOWN


def describe_commits(commits: Sequence[str]) -> str:
    """Which commit the results are of, as a sentence; or that results of several were added up."""
    return describe_mixture(commits) or _("Commit {commit}.").format(commit=commits[0] if commits else UNKNOWN)


def describe_mixture(commits: Iterable[str]) -> str:
    """A sentence if results of different commits, or of unknown ones beside others, were added up; "" otherwise.

    commits: of the results, in the order in which they were written.
    """
    several = list(dict.fromkeys(commits))
    if len(several) < 2:
        return ""
    return _("Results of {number} states of the project are added up here: commits {commits}.").format(
        number=len(several), commits=", ".join(several)
    )
