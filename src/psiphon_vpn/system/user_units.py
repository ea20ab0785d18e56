"""Units of users' sessions. They belong to `Layout.user_unit_dir`; nothing of the lock depends on them."""

from __future__ import annotations

from typing import Final

from psiphon_vpn.system.layout import Layout
from psiphon_vpn.system.units import render_target_dropin

NOTIFY_UNIT: Final = "psiphon-vpn-notify.service"
SESSION_TARGET: Final = "graphical-session.target"


def render_notify_unit(layout: Layout | None = None) -> str:
    """The unit that shows desktop notifications, as the user, from the control socket.

    It starts with a graphical session alone (systemd.special(7)). For a user who may not read the status it ends with
    code 77, which is a failure that does not go away by trying again: `systemctl --user` shows it, with what to do.
    """
    command = (layout or Layout()).command
    return f"""\
[Unit]
Description=Psiphon VPN: desktop notifications
Documentation=man:psiphon-vpn(8)
PartOf=graphical-session.target
After=graphical-session.target

[Service]
ExecStart={command} notify
Restart=on-failure
RestartSec=30
RestartPreventExitStatus=77
NoNewPrivileges=yes
RestrictAddressFamilies=AF_UNIX
SystemCallArchitectures=native
LockPersonality=yes
RestrictRealtime=yes
UMask=0077
"""


def collect_user_units(layout: Layout | None = None) -> dict[str, str]:
    """Every file below `Layout.user_unit_dir`, by its path there.

    As for the system's units there is nothing to enable: a drop-in of ours lets the session want it.
    """
    return {
        NOTIFY_UNIT: render_notify_unit(layout),
        f"{SESSION_TARGET}.d/psiphon-vpn.conf": render_target_dropin(NOTIFY_UNIT),
    }
