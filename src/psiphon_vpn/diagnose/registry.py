# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of all checks, in the order in which they are shown."""

from __future__ import annotations

from typing import Final

from psiphon_vpn.diagnose.checks import (
    clock,
    core,
    disk,
    dns,
    files,
    firewalls,
    kernel,
    lock,
    login,
    routes,
    strangers,
    tunnel,
    units,
)
from psiphon_vpn.diagnose.model import Check

CHECKS: Final[tuple[Check, ...]] = (
    *lock.CHECKS,
    *routes.CHECKS,
    *login.CHECKS,
    *tunnel.CHECKS,
    *dns.CHECKS,
    *core.CHECKS,
    *strangers.CHECKS,
    *files.CHECKS,
    *units.CHECKS,
    *kernel.CHECKS,
    *firewalls.CHECKS,
    *clock.CHECKS,
    *disk.CHECKS,
)
