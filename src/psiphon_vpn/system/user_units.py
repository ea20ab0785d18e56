"""Units of users' sessions. They belong to `Layout.user_unit_dir`; nothing of the lock depends on them."""

from __future__ import annotations

from typing import Final

from psiphon_vpn.system.layout import Layout

NOTIFY_UNIT: Final = "psiphon-vpn-notify.service"


def render_notify_unit(layout: Layout | None = None) -> str:
    """The unit that shows desktop notifications, as the user, from the control socket.

    It starts with a graphical session alone (systemd.special(7)), and ends with code 77 for a user who may not read the
    status: that is no failure.
    """
    command = (layout or Layout()).command
    return f"""\
[Unit]
Description=Psiphon VPN: desktop notifications
Documentation=man:psiphon-vpn(1)
PartOf=graphical-session.target
After=graphical-session.target

[Service]
ExecStart={command} notify
Restart=on-failure
RestartSec=30
SuccessExitStatus=77
RestartPreventExitStatus=77
NoNewPrivileges=yes
RestrictAddressFamilies=AF_UNIX
SystemCallArchitectures=native
LockPersonality=yes
RestrictRealtime=yes
UMask=0077

[Install]
WantedBy=graphical-session.target
"""


def collect_user_units(layout: Layout | None = None) -> dict[str, str]:
    """Every user unit, by name."""
    return {NOTIFY_UNIT: render_notify_unit(layout)}
