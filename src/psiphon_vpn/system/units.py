"""Which of the files in `resources/` are units and drop-ins of ours, and for what.

They load with systemd 245; what an older one does not know it warns about and leaves out (R22). Three rules hold for
all of them: stopping one opens nothing (none runs a command then but the one for sleep, which tells the daemon that the
machine has woken: that opens after a check or not at all), nothing but nft is needed for the lock, and there is nothing
to enable or to disable: targets want the units by drop-ins of ours, not by a symbolic link that `systemctl disable`
could remove, so that the next boot is locked too.

The kill switch refuses `systemctl stop`: nothing would open, but systemd would stop the network managers with it, since
they require it. The guard refuses it because a layer would be gone until the next boot. Both can be reloaded, without a
moment in which their rules are not there. Both can be stopped once their files are gone and systemd was told
(daemon-reload), which is how an uninstallation does it.

Most units are confined by the same directives, each in full in its file: first those that cannot make a unit fail where
they are not known, then those that need a mount namespace. `tests/unit/test_units.py` compares them.
"""

from __future__ import annotations

from typing import Final

from psiphon_vpn import network_managers
from psiphon_vpn.system.layout import UNITS
from psiphon_vpn.system.resources import render_resource

TARGETS: Final = ("sysinit.target", "multi-user.target", "sleep.target")
"""Targets that want units of ours."""
NOTIFY_UNIT: Final = "psiphon-vpn-notify.service"
"""Of a user's session: shows desktop notifications, as the user, from the control socket.

It starts with a graphical session alone (systemd.special(7)). For a user who may not read the status it ends with code
77, which is a failure that does not go away by trying again: `systemctl --user` shows it, with what to do.
"""
SESSION_TARGET: Final = "graphical-session.target"


def render_units() -> dict[str, str]:
    """Every unit of ours, by name."""
    return {unit: render_resource(unit) for unit in UNITS}


def render_dropins() -> dict[str, str]:
    """Our drop-ins for units of others, by the unit's name."""
    requires = render_resource("requires-killswitch.conf")
    return {
        **{target: render_resource(f"{target}.conf") for target in TARGETS},
        **dict.fromkeys(network_managers.UNITS, requires),
    }


def render_user_units() -> dict[str, str]:
    """Every file below `Layout.user_unit_dir`, by its path there. Nothing of the lock depends on them."""
    return {
        NOTIFY_UNIT: render_resource(NOTIFY_UNIT),
        f"{SESSION_TARGET}.d/psiphon-vpn.conf": render_resource(f"{SESSION_TARGET}.conf"),
    }


def render_guard_script() -> str:
    """What psiphon-guard.service runs. In a file of its own so that a person can read it and a test can run it."""
    return render_resource("guard.sh")


def render_sleep_script() -> str:
    """What psiphon-sleep.service runs, in a file of its own for the same reason."""
    return render_resource("sleep.sh")
