# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Turns every failure of a command into one line and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from psiphon_vpn import PROGRAM
from psiphon_vpn.errors import UserError, join_line
from psiphon_vpn.i18n import _
from psiphon_vpn.terminal import echo, style

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

EXIT_FAULT: Final = 70
"""sysexits.h EX_SOFTWARE."""
EXIT_INTERRUPTED: Final = 130


def guard(command: Callable[[], object], *, debug: bool) -> int:
    """Carry out a command.

    Args:
        command: returns its exit code, or anything else for 0.
        debug: also show where in the program a failure came from.

    Returns:
        The exit code: 0, the command's own, 70 for a fault of this program, 130 after Ctrl-C.
    """
    try:
        code = command()
    except UserError as error:
        show_failure(str(error), debug=debug)
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of the output has gone, as with `| head`: nothing more to print.
        return _silence_stdout()
    except Exception as fault:  # noqa: BLE001  the last line of defence: a user gets a sentence, not a traceback
        name = type(fault).__name__
        text = _("This is a fault in {program} ({name}). Run it again with --debug and report its output.")
        show_failure(text.format(program=PROGRAM, name=name), debug=debug)
        return EXIT_FAULT
    return code if isinstance(code, int) else 0


def _silence_stdout() -> int:
    # Python flushes standard output at exit and would complain again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def show_failure(text: str, *, debug: bool) -> None:
    """Show the failure that is being handled, in red."""
    if debug:
        import traceback

        echo(traceback.format_exc(), err=True)
    from psiphon_vpn.wrapping import fit

    # The terminal itself would break words, and commands that the line says to type.
    echo(style(fit(join_line(text), sys.stderr), color="red"), err=True)
