# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""How slow the machine is on which the laboratory's programs run: 1, or more on an emulated processor.

Limits and pauses of the laboratory are multiplied by it. It says nothing about the service, which does not know it.
"""

from __future__ import annotations

import os
from typing import Final

VARIABLE: Final = "PSIPHON_VPN_LAB_PACE"
PACE: Final = float(os.environ.get(VARIABLE) or 1.0)
"""From the environment, so that every process of an emulated machine has it."""
