# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether this kernel has IPv6 turned on. A machine with IPv6 turned off is a normal machine."""

import enum

from psiphon_vpn.linux import sysctl


class Ipv6(enum.StrEnum):
    """The state of IPv6 on a device (kernel documentation, networking/ipv6.rst and ip-sysctl.rst)."""

    ON = "on"
    OFF = "off"
    """Turned off by disable_ipv6: the kernel accepts no address and no route."""
    ABSENT = "absent"
    """A kernel without IPv6, or started with `ipv6.disable=1`."""


def read_ipv6(device: str) -> Ipv6:
    """The state of IPv6 on a device; if the device does not exist, the state that a new one would get."""
    for name in (device, "default"):
        try:
            return Ipv6.ON if sysctl.read_setting(f"net/ipv6/conf/{name}/disable_ipv6") == "0" else Ipv6.OFF
        except OSError:
            continue
    return Ipv6.ABSENT
