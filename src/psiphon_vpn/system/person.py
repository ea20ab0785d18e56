# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The person who runs a command as root, and who may then read the status without being root."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

LOGIN: Final = Path("/proc/self/loginuid")
_BY: Final = ("SUDO_UID", "PKEXEC_UID")
"""Set by sudo(8) and pkexec(1)."""
_NOBODY: Final = 2**32 - 1
"""The loginuid of a process without a login (audit)."""


def find_person(environment: Mapping[str, str] | None = None, login: Path = LOGIN) -> int | None:
    """The user number of the person behind this command; None if it is root itself."""
    environment = os.environ if environment is None else environment
    words = [environment.get(name, "") for name in _BY]
    with contextlib.suppress(OSError, ValueError):
        words.append(login.read_text(encoding="ascii").strip())
    for word in words:
        if word.isascii() and word.isdigit() and len(word) <= 10 and 0 < int(word) < _NOBODY:
            return int(word)
    return None


def render_readers(person: int | None) -> str:
    """The initial list of readers."""
    lines = [
        "# The users that may see 'psiphon-vpn status' and its notifications: one per line, by name or number. They",
        "# can change nothing. After a change: sudo psiphon-vpn reload",
        *([] if person is None else [f"{person}  # installed the service"]),
    ]
    return "\n".join(lines) + "\n"
