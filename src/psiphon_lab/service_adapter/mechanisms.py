# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds out, with the service's own trials, which mechanisms a kernel lacks that the service's layers need."""

from __future__ import annotations

import asyncio

from psiphon_vpn.linux.features import probe_features


def find_missing() -> tuple[str, ...]:
    """Names of mechanisms that this kernel, or this nft, lacks (`linux/features.py`)."""
    return asyncio.run(probe_features()).missing
