# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""One daemon at a time: two would keep undoing each other's rules, and one could not close the other's lease."""

import fcntl
import logging
import os
from pathlib import Path

from psiphon_vpn.errors import UserError
from psiphon_vpn.i18n import _

log = logging.getLogger(__name__)


def claim_instance(path: Path) -> int | None:
    """Take the lock file (flock(2)). The kernel releases it when the daemon ends, however it ends.

    Args:
        path: of the lock file, in the runtime directory.

    Returns:
        The descriptor that holds the lock, which must stay open; None if no lock file can be made. That is logged and
        does not stop the daemon: the firewall comes first, and the control socket will fail in the same directory.

    Raises:
        UserError: another daemon holds it.
    """
    descriptor: int | None = None
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            _("The service cannot start"),
            _("it is running already"),
            _("To see what it does: psiphon-vpn status"),
        ) from None
    except OSError as error:
        log.warning("no lock file can be made, so a second daemon would not be noticed: %s", error.strerror)
        if descriptor is not None:
            os.close(descriptor)
        return None
    return descriptor
