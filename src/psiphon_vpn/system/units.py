# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The units and drop-ins of the service, from the files in `resources/`.

They load with systemd 245, which warns about directives that it does not know and ignores them (R22). Three rules hold
for all of them. Stopping one opens nothing: only the sleep unit then runs a command, which notifies the daemon that the
machine has woken up, and the daemon opens after a check or not at all. The lock needs only nft. And nothing can be
enabled or disabled: targets want the units by drop-ins, not by a symbolic link that `systemctl disable` could remove,
so that the next boot is locked too.

The kill switch refuses `systemctl stop`: nothing would open, but systemd would also stop the network managers, since
they require it. The guard refuses it because a layer would be missing until the next boot. Both can be reloaded without
a gap. Both can be stopped after their files are gone and systemd has reloaded (daemon-reload), as an uninstallation
does.

Most units are confined by the same directives, written out in each file: first those that cannot make a unit fail if
systemd does not know them, then those that need a mount namespace. `tests/unit/test_units.py` compares them.
"""

from __future__ import annotations

from typing import Final

from psiphon_vpn import network_managers
from psiphon_vpn.system.layout import UNIT_FILES
from psiphon_vpn.system.resources import render_resource

TARGETS: Final = ("sysinit.target", "multi-user.target", "sleep.target", "timers.target")
"""Targets that want units of the service."""
NOTIFY_UNIT: Final = "psiphon-vpn-notify.service"
"""Unit of a user's session: shows desktop notifications, as the user, from the control socket.

Only a graphical session starts it (systemd.special(7)). For a user who may not read the status it ends with code 77 and
is not restarted: `systemctl --user` shows the failure, with what to do.
"""


def render_units() -> dict[str, str]:
    """Every unit of the service, by name."""
    return {unit: render_resource(unit) for unit in UNIT_FILES}


def render_dropins() -> dict[str, str]:
    """The drop-ins for other packages' units, by the unit's name."""
    requires = render_resource("requires-killswitch.conf")
    return {
        **{target: render_resource(f"{target}.conf") for target in TARGETS},
        **dict.fromkeys(network_managers.UNITS, requires),
    }


def render_session_dropin() -> str:
    """The drop-in by which a graphical session wants the notifications. The lock does not depend on it."""
    return render_resource("graphical-session.target.conf")


def render_notify_unit() -> str:
    """The unit of a user's session."""
    return render_resource(NOTIFY_UNIT)


def render_guard_script() -> str:
    """The script of psiphon-guard.service, in a separate file so that a person can read it and a test can run it."""
    return render_resource("guard.sh")


def render_generator() -> str:
    """What systemd runs before it starts any unit: loads the boot lock if an interface is up already."""
    return render_resource("generator.sh")


def render_sleep_script() -> str:
    """The script of psiphon-sleep.service, in a separate file for the same reason."""
    return render_resource("sleep.sh")
