# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel settings below /proc/sys. Those of the network may be written with CAP_NET_ADMIN (net/sysctl_net.c)."""

import os
from collections.abc import Mapping
from pathlib import Path

ROOT = Path("/proc/sys")
_LONGEST = 4096
"""Bytes. No setting that is read here is longer."""


def read_setting(path: str) -> str:
    """The value of a setting.

    Without Python's file objects, which take three times as long: all settings are read with each renewal of the lease.

    Args:
        path: below `ROOT`.

    Raises:
        OSError: it cannot be read (FileNotFoundError: this kernel does not have it).
    """
    descriptor = os.open(f"{ROOT}/{path}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, _LONGEST).decode("ascii", "replace").strip()
    finally:
        os.close(descriptor)


def apply_sysctls(wanted: Mapping[str, str]) -> list[str]:
    """Write the settings that differ. Those that this kernel does not have (IPv6, a device) are skipped.

    Returns:
        Names of the settings that could not be made so, with the reason; empty when all hold.
    """
    failed = []
    for name, value in wanted.items():
        try:
            if read_setting(name) != value:
                (ROOT / name).write_text(value)
        except FileNotFoundError:
            continue
        except OSError as error:
            failed.append(f"{name.replace('/', '.')}: {error.strerror}")
    return failed


def check_sysctls(wanted: Mapping[str, str]) -> list[str]:
    """The settings with another value than the wanted one, among those that this kernel has."""
    wrong = []
    for name, value in wanted.items():
        try:
            if read_setting(name) == value:
                continue
        except FileNotFoundError:
            continue
        except OSError:
            pass
        wrong.append(name.replace("/", "."))
    return wrong
