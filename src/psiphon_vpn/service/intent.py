# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The stored intent: what the user asked for. It survives a restart and a reboot."""

import contextlib
import logging
import os
from pathlib import Path

from psiphon_vpn.service.events import Intent
from psiphon_vpn.stored_files import read_stored

log = logging.getLogger(__name__)

_MAX_BYTES = 64


def load_intent(path: Path) -> Intent:
    """The stored intent. An absent or unreadable one means connected: locked, and trying to connect."""
    try:
        return Intent(read_stored(path, high=_MAX_BYTES).decode().strip())
    except FileNotFoundError:
        return Intent.CONNECTED
    except (OSError, ValueError) as error:
        log.warning("the stored intent cannot be read, connecting: %s", error)
        return Intent.CONNECTED


def store_intent(path: Path, intent: Intent) -> None:
    """Store the intent atomically. A failure is only logged: the lock does not depend on it."""
    temporary = path.with_suffix(".new")
    try:
        with temporary.open("w") as file:
            file.write(f"{intent}\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        log.error("the intent could not be stored: %s", error)
        with contextlib.suppress(OSError):
            temporary.unlink()
