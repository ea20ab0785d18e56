# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Failures that a user can do something about: one line that says what, why, and what to do next.

Exit codes follow sysexits.h where one fits.
"""

from __future__ import annotations

from psiphon_vpn.i18n import _

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

EXIT_FAILURE = 1
EXIT_DAEMON_DOWN = 3
"""As in the LSB: `status` of a service that is not running."""
EXIT_TRY_LATER = 75
"""sysexits.h EX_TEMPFAIL."""
EXIT_NOT_ROOT = 77
"""sysexits.h EX_NOPERM."""
EXIT_BAD_CONFIG = 78
"""sysexits.h EX_CONFIG."""


def join_line(text: str) -> str:
    """Fold a text into one line: other programs' messages are often several."""
    return " ".join(text.split())


def describe_failure(error: Exception) -> str:
    """Any failure in one line, for users; never empty.

    Args:
        error: a `UserError`, an error of the system (shown with file and reason), or a defect (shown with its type).
    """
    if isinstance(error, UserError):
        return f"{error.what}: {error.why}"
    if isinstance(error, OSError) and error.strerror:
        return join_line(f"{error.filename}: {error.strerror}" if error.filename else error.strerror)
    return join_line(f"{type(error).__name__} {error}")


class UserError(Exception):
    """A failure to show to the user. Its `str()` is one line, "what: why. next_step".

    Args:
        what: what could not be done, translated, without a full stop.
        why: the reason, translated.
        next_step: what the user can do, a whole sentence, translated.
        exit_code: exit code of the command.
    """

    default_exit_code = EXIT_FAILURE

    def __init__(self, what: str, why: str, next_step: str, *, exit_code: int | None = None) -> None:
        super().__init__(what, why, next_step)
        self.what = join_line(what)
        self.why = join_line(why)
        self.next_step = join_line(next_step)
        self.exit_code = self.default_exit_code if exit_code is None else exit_code

    def __str__(self) -> str:
        end = "" if self.why.endswith(("?", "!")) else "."
        return f"{self.what}: {self.why.rstrip('.')}{end} {self.next_step}".rstrip()


class ConfigError(UserError):
    """The configuration file cannot be used.

    Args:
        path: the file.
        why: the reason, translated.
        next_step: what the user can do, translated.
        line: number of the line at fault, counted from 1; None for the whole file.

    Attributes:
        reason: `why` as it was given, without the place.
    """

    default_exit_code = EXIT_BAD_CONFIG

    def __init__(self, path: Path, why: str, next_step: str, *, line: int | None = None) -> None:
        place = _("{path}, line {line}").format(path=path, line=line) if line is not None else str(path)
        super().__init__(_("The configuration is not usable"), f"{place}: {why}", next_step)
        self.reason = why
        self.path = path
        self.line = line


class NotRootError(UserError):
    """The command needs root (R21).

    Args:
        command: as the user typed it, without sudo.
    """

    default_exit_code = EXIT_NOT_ROOT

    def __init__(self, command: str) -> None:
        super().__init__(
            _("Cannot run '{command}'").format(command=command),
            _("only root may do this"),
            _("Run it again with sudo in front."),
        )


class DaemonDownError(UserError):
    """Nobody answers on the control socket.

    Args:
        why: the reason, translated.
        next_step: what the user can do, translated (`system/next_step.py`); None: what helps where all else is well.
    """

    default_exit_code = EXIT_DAEMON_DOWN

    def __init__(self, why: str, next_step: str | None = None) -> None:
        if next_step is None:
            next_step = _("Start it: sudo psiphon-vpn start. Why it ended: sudo psiphon-vpn log")
        super().__init__(_("Cannot reach the service"), why, next_step)
