# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The Debian trees of virtual computers: those of booted systems, with Debian's kernel and its initrd."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from psiphon_lab.booted.trees import DEBIAN_12, DEBIAN_13, Suite

_KERNEL: Final = ("linux-image-amd64", "initramfs-tools", "zstd")
# kexec starts a kernel without the firmware; ifupdown is the third network manager.
_BOOTS: Final = ("kexec-tools", "ifupdown", "isc-dhcp-client")


def add_kernel(suite: Suite) -> Suite:
    """A suite whose tree also has a kernel."""
    return replace(suite, packages=(*suite.packages, *_KERNEL, *_BOOTS))


VIRTUAL: Final = {"debian-12": add_kernel(DEBIAN_12), "debian-13": add_kernel(DEBIAN_13)}
"""The suites of virtual computers, by their names for users."""
