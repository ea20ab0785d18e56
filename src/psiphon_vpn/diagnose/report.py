# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""`--report FILE`: one text about this machine's lock that a person can read before sharing it.

A text and not an archive: people who are in danger must be able to see what is in it. Everything goes through the
redactor, and the most revealing parts (other programs' logs, whole configuration files) are left out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click

from psiphon_vpn import __version__
from psiphon_vpn.diagnose.basic_facts import PROC
from psiphon_vpn.diagnose.facts import Facts
from psiphon_vpn.diagnose.identities import find_identities, read_known
from psiphon_vpn.diagnose.log_query import list_matches
from psiphon_vpn.diagnose.model import Result
from psiphon_vpn.diagnose.redact import Redactor
from psiphon_vpn.diagnose.render import render_text
from psiphon_vpn.errors import UserError
from psiphon_vpn.i18n import _
from psiphon_vpn.policy.own_tables import LAYERS
from psiphon_vpn.system import layout as places

MODE: Final = 0o600
JOURNAL_LINES: Final = 200
COMMANDS: Final = (
    # Only the service's tables: comments in other tables are their users' own words.
    ("nft", "list", "tables"),
    *(("nft", "-s", "list", "table", *table.address) for table in LAYERS),
    ("ip", "-br", "link"),
    ("ip", "rule"),
    ("ip", "-6", "rule"),
    ("ip", "route", "show", "table", "all"),
    ("ip", "-6", "route", "show", "table", "all"),
    ("systemctl", "--no-pager", "cat", *places.UNIT_FILES),
    ("systemctl", "--no-pager", "--no-legend", "list-units", *places.UNIT_FILES),
    ("journalctl", "--no-pager", "--boot", "--output=short-iso", "--no-hostname", f"--lines={JOURNAL_LINES}",
     *list_matches()),
)  # fmt: skip


def render_report(facts: Facts, results: Sequence[Result]) -> str:
    """The whole report, redacted."""
    sections = [("checks", click.unstyle(render_text(results, width=100)))]
    sections.append(("versions", _render_versions(facts)))
    for argv in COMMANDS:
        answer = facts.system.run(argv)
        text = answer.out + (f"\n{answer.trouble or answer.err}" if not answer.good else "")
        sections.append((" ".join(argv), text.strip()))
    heading = _(
        "A report of psiphon-vpn diagnose. Addresses, names and secrets were replaced by <...>. "
        "Read it before you share it: it may still show which programs you use."
    )
    redactor = Redactor(find_identities(facts))
    # Section by section: a command's own words (a table called "filter") do not come from the user.
    body = "".join(f"\n== {title}\n{_clean(redactor.redact(text))}\n" for title, text in sections)
    return f"{heading}\n{body}"


def _clean(text: str) -> str:
    """Remove control characters for a terminal: a log may contain others' text."""
    return "\n".join(
        "".join(char if char.isprintable() or char == "\t" else "?" for char in line) for line in text.split("\n")
    )


def _render_versions(facts: Facts) -> str:
    release = read_known(facts, PROC / "sys" / "kernel" / "osrelease").strip()
    distribution = [
        line.partition("=")[2].strip('"')
        for line in read_known(facts, facts.at("/etc/os-release")).splitlines()
        if line.startswith("PRETTY_NAME=")
    ]
    # The text after the numbers names who built it, and sometimes where.
    kernel = re.sub(r"[^0-9.].*", "", release)
    lines = [
        f"psiphon-vpn {__version__}",
        f"Linux {kernel}",
        *distribution,
        str(facts.rules.version),
    ]
    return "\n".join(lines)


class ReportError(UserError):
    """The report cannot be written."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(
            _("The report cannot be written"),
            f"{path}: {why}",
            _("Name a file that does not exist yet, in an existing directory."),
        )


def write_report(path: Path, text: str) -> None:
    """Write it to a new file that only its owner can read.

    Raises:
        ReportError: the name exists already, even as a link, or the file cannot be made.
    """
    try:
        # O_EXCL follows no link, not even a dangling one (open(2)).
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, MODE)
    except FileExistsError:
        raise ReportError(path, _("it exists already")) from None
    except OSError as error:
        raise ReportError(path, error.strerror or str(error)) from error
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            os.fchmod(file.fileno(), MODE)
            file.write(text)
    except OSError as error:
        raise ReportError(path, error.strerror or str(error)) from error
