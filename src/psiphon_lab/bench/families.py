# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""All families of measurements, in the order in which they run."""

from __future__ import annotations

from psiphon_lab.bench import commands, idle, latency, lifecycle, scaling, throughput
from psiphon_lab.bench.steps import Family

FAMILIES: tuple[Family, ...] = (
    throughput.CONTROL,
    throughput.FAMILY,
    latency.FAMILY,
    commands.FAMILY,
    idle.FAMILY,
    lifecycle.FAMILY,
    scaling.FAMILY,
)
