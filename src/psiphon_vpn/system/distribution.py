# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether the distribution's package manager installed this program, and must remove it."""

from __future__ import annotations

from typing import Final

from psiphon_vpn.run import CommandError, run

PACKAGE: Final = "psiphon-vpn"


def find_removal() -> str | None:
    """The command that removes this program's package from this machine; None if no package manager knows it."""
    try:
        # dpkg also knows packages in "config-files" and half-installed states; only installed files count.
        status = run(["dpkg-query", "-W", "-f", "${db:Status-Status}", PACKAGE], ok=(0, 1)).stdout
        if status not in {"", "not-installed", "config-files"}:
            return f"apt remove {PACKAGE}"
    except CommandError:
        pass  # no dpkg here
    try:
        if run(["rpm", "-q", "--quiet", PACKAGE], ok=(0, 1)).returncode == 0:
            return f"dnf remove {PACKAGE}"
    except CommandError:
        pass  # no rpm here
    return None
