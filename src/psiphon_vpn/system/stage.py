# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""How far an operation on this system has come, as its journal says: all that most commands need of the journal."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from psiphon_vpn.errors import UserError
from psiphon_vpn.i18n import _
from psiphon_vpn.stored_files import StoredError, parse_object, read_stored, take

FORMAT: Final = 1
MAX_SIZE: Final = 256 * 1024 * 1024
"""Bytes. It holds the content of the files that the installation replaced."""


class Stage(enum.StrEnum):
    """The progress of an operation."""

    INSTALLING = "installing"
    INSTALLED = "installed"
    REMOVING = "removing"


class JournalError(UserError):
    """The journal cannot be read."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(
            _("The record of the installation is not usable"),
            f"{path}: {why}",
            _("See 'psiphon-vpn help stranded', under \"the record is damaged\"."),
        )


def read_stage(path: Path) -> Stage | None:
    """The progress that a journal names; None if there is no journal.

    Raises:
        JournalError: it exists and cannot be parsed, or not be read.
    """
    stored = read_journal(path)
    try:
        return None if stored is None else Stage(take(stored, "stage", str))
    except ValueError as error:
        raise JournalError(path, str(error)) from error


def read_journal(path: Path) -> Mapping[str, Any] | None:
    """The content of a journal, of which only the format was checked; None if there is none. Raises JournalError."""
    try:
        stored = parse_object(read_stored(path, high=MAX_SIZE))
        if take(stored, "format", int) != FORMAT:
            raise StoredError("it was written by another version of this program")
        return stored
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise JournalError(path, error.strerror or str(error)) from error
    except ValueError as error:
        raise JournalError(path, str(error)) from error
