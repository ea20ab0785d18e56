# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The device types of interfaces, such as "wlan", from sysfs: netlink does not report them."""

from collections.abc import Iterable
from pathlib import Path
from typing import Final

_SYSFS: Final = Path("/sys/class/net")
_FIELD: Final = "DEVTYPE="
_MOST: Final = 4096
"""One page, as large as an attribute of sysfs can be."""


def read_device_types(names: Iterable[str], *, sysfs: Path = _SYSFS) -> frozenset[str]:
    """The device types of these interfaces; an Ethernet card has none. What cannot be read counts as none."""
    found = set()
    for name in names:
        try:
            with (sysfs / name / "uevent").open(encoding="utf-8", errors="replace") as file:
                lines = file.read(_MOST).splitlines()
        except OSError:
            continue
        found |= {line.removeprefix(_FIELD) for line in lines if line.startswith(_FIELD)}
    return frozenset(found)
