# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon with one fault: it cannot read the links. Run as `python blind_daemon.py ARGS`."""

from __future__ import annotations

import sys

from psiphon_vpn.service import __main__, observer


async def fail() -> None:
    raise OSError("blind")


if __name__ == "__main__":
    vars(observer)["read_snapshot"] = fail
    sys.exit(__main__.main())
