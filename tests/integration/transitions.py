# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads from the service's log what ended open tunnels."""

from __future__ import annotations

import re

from psiphon_vpn.service.reasons import Reason


def list_ends(log: str) -> list[str]:
    """The reason code for the end of each open tunnel in this log, except for leases that were renewed too late.

    Those are no reaction to anything that a test does, and the service opens again with the same core.
    """
    return [reason for reason in re.findall(r"OPEN -> \w+: (\w+)", log) if reason != Reason.LEASE_EXPIRED]
