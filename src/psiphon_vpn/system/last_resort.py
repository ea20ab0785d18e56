# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""`uninstall` for a program whose command line does not load: needs only the standard library.

Even a program with damaged packages must be able to undo its changes to the machine.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import Final

from psiphon_vpn.errors import EXIT_FAILURE, EXIT_NOT_ROOT, UserError
from psiphon_vpn.i18n import _
from psiphon_vpn.system.distribution import find_removal
from psiphon_vpn.system.install import uninstall
from psiphon_vpn.system.linux_platform import open_platform

EXIT_FAULT: Final = 70
"""sysexits.h EX_SOFTWARE."""


def run(argv: Sequence[str], *, cause: str) -> int:
    """Run `uninstall` or `system-deconfigure`; for any other command, say what to do.

    Args:
        argv: the arguments of psiphon-vpn.
        cause: why the command line does not load.

    Returns:
        The exit code.
    """
    command = argv[0] if argv else ""
    if command not in {"uninstall", "system-deconfigure"}:
        _say(_("This program is damaged ({cause}): install it again, or remove it.").format(cause=cause))
        _say(_("Installing and removing it still work, and so does: psiphon-vpn uninstall"))
        return EXIT_FAULT
    if os.geteuid() != 0:
        _say(_("Only root may do this: run it again with sudo in front."))
        return EXIT_NOT_ROOT
    if command == "uninstall":
        if (removal := find_removal()) is not None:
            _say(_("Remove it with: sudo {command}").format(command=removal))
            return EXIT_FAILURE
        if "--yes" not in argv and not _agree():
            return EXIT_FAILURE
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        uninstall(open_platform(), say=lambda _line: None)
    except UserError as error:
        _say(str(error))
        return error.exit_code
    _say(_("Removed. The network is open, as it was before."))
    return 0


def _agree() -> bool:
    _say(_("This removes the service and undoes its changes, and opens the network. Go on? [y/N]"))
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
