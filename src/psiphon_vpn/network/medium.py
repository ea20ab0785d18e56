# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What carries an uplink: a cable, a radio or a mobile network. Pure. The core stores what worked for each kind."""

import enum
from collections.abc import Collection

from psiphon_vpn.network.uplink import MOBILE_KINDS, Uplink


class Medium(enum.StrEnum):
    """What carries an uplink, in the words of psiphon-tunnel-core's NetworkID."""

    WIRED = "WIRED"
    WIFI = "WIFI"
    MOBILE = "MOBILE"
    VPN = "VPN"


_MEDIA = {"wlan": Medium.WIFI, "wwan": Medium.MOBILE}
"""By the device type that the kernel gives a card: cfg80211's, and that of its drivers for mobile cards."""


def find_medium(uplink: Uplink, device_types: Collection[str]) -> Medium:
    """What carries an uplink.

    PPP counts as a cable: the kernel does not say whether its line is PPPoE's or a modem's.

    Args:
        uplink: with the kinds of the interfaces that it consists of.
        device_types: the kernel's device types of these interfaces.
    """
    if uplink.tunnel and "ppp" not in uplink.kinds:
        return Medium.VPN
    if MOBILE_KINDS.intersection(uplink.kinds):
        return Medium.MOBILE
    return next((_MEDIA[kind] for kind in sorted(device_types) if kind in _MEDIA), Medium.WIRED)
