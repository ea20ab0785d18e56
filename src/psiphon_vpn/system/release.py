# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""`release`, the only way to open this machine without uninstalling, and `start`, which locks it again."""

from __future__ import annotations

from typing import Final

from psiphon_vpn.errors import UserError
from psiphon_vpn.i18n import _
from psiphon_vpn.system.configure import relock
from psiphon_vpn.system.layout import GUARD_UNIT, SERVICE_UNIT
from psiphon_vpn.system.platform import Platform
from psiphon_vpn.system.released import mask_resolver, write_record

WORD: Final = "release"
"""The word to type; not translated, so that instructions hold in every language."""


def release(platform: Platform, *, by: str) -> None:
    """Open this machine until the next start or boot.

    The record is written before anything opens; the base table, which alone stops everything, goes last.

    Args:
        platform: the system to change.
        by: user id of the person.

    Raises:
        UserError: it did not work. `status` says whether the machine is open.
    """
    manager = platform.manager
    manager.stop(SERVICE_UNIT)
    if manager.is_active(SERVICE_UNIT):
        raise UserError(
            _("The network was not opened"),
            _("the service does not stop"),
            _("Find out why: journalctl -u {unit}").format(unit=SERVICE_UNIT),
        )
    write_record(platform.layout, by=by)
    mask_resolver(platform)
    manager.stop(GUARD_UNIT)
    platform.kernel.remove_routing()
    platform.kernel.remove_tables()


def start(platform: Platform) -> None:
    """Lock, whatever the state, and then start the service.

    Raises:
        UserError: the lock does not close, or the service does not start; says which.
    """
    relock(platform)
    platform.manager.start(SERVICE_UNIT)
