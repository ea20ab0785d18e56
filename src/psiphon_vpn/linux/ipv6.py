"""Whether the kernel has IPv6 for us: a machine on which it is turned off is a normal machine."""

import enum

from psiphon_vpn.linux import sysctl


class Ipv6(enum.StrEnum):
    """What a device has of it (kernel documentation, networking/ipv6.rst and ip-sysctl.rst)."""

    ON = "on"
    OFF = "off"
    """Turned off by disable_ipv6: no address and no route is taken."""
    ABSENT = "absent"
    """A kernel without IPv6, or started with `ipv6.disable=1`."""


def read_ipv6(device: str) -> Ipv6:
    """What a device has of IPv6; where there is no such device, what a new one would get."""
    for name in (device, "default"):
        try:
            return Ipv6.ON if sysctl.read_setting(f"net/ipv6/conf/{name}/disable_ipv6") == "0" else Ipv6.OFF
        except OSError:
            continue
    return Ipv6.ABSENT
