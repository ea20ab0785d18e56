# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Desktop notifications, in the user's own session: watches the control socket.

The daemon must not touch a desktop. This runs as the user, with only the right to read the status, and calls the
session's notification service (org.freedesktop.Notifications, Desktop Notifications Specification 1.2).
"""

import os
import time
from pathlib import Path
from typing import Final

import click

from psiphon_vpn import client
from psiphon_vpn.client import Status, clean_text
from psiphon_vpn.errors import DaemonDownError, UserError
from psiphon_vpn.i18n import _

INTERFACE: Final = "org.freedesktop.Notifications"
PATH: Final = "/org/freedesktop/Notifications"
SIGNATURE: Final = "susssasa{sv}i"
CALL_SECONDS: Final = 5.0
RETRY_SECONDS: Final = 10.0
SETTLE_SECONDS: Final = 3.0
"""A shorter state is not shown: a reconnection takes less."""
DAEMON_DOWN: Final = "daemon-down"


def find_message(status: Status) -> tuple[str, str, bool]:
    """The notification of a status: title, text, and whether it is urgent. Equal ones are shown once."""
    reason = clean_text(status.get("reason") or "")
    step = clean_text(status.get("next_step") or "")
    text = "\n".join(part for part in (reason[:1].upper() + reason[1:], step) if part)
    if status.get("reason_code") == DAEMON_DOWN:
        return _("Psiphon VPN: the service does not run"), text, True
    if status.get("locked") is not True:
        return _("Psiphon VPN: NOT LOCKED"), text, True
    if status.get("state") == "OPEN":
        return _("Psiphon VPN: connected"), _("Everything leaves this computer through the tunnel."), False
    if status.get("state") == "FAILED":
        return _("Psiphon VPN: offline, your help is needed"), text, True
    if status.get("intent") == "stopped":
        return _("Psiphon VPN: stopped and locked"), _("Nothing can leave this computer."), False
    return _("Psiphon VPN: locked, not connected"), text, False


class NotShownError(Exception):
    """There is no bus, or no program that shows notifications; the text says why, in English."""


def send(address: str, message: tuple[str, str, bool], replaces: int) -> int:
    """Show a notification in place of the previous one; returns its number, for the next call.

    Raises:
        NotShownError: it could not be shown.
    """
    from jeepney import DBusAddress, MessageType, new_method_call
    from jeepney.io.blocking import open_dbus_connection

    title, text, urgent = message
    hints = {"urgency": ("y", 2 if urgent else 1)}
    call = new_method_call(
        DBusAddress(PATH, bus_name=INTERFACE, interface=INTERFACE),
        "Notify",
        SIGNATURE,
        ("psiphon-vpn", replaces, "network-vpn", title, text, [], hints, -1),
    )
    try:
        with open_dbus_connection(address) as bus:
            answer = bus.send_and_get_reply(call, timeout=CALL_SECONDS)
        if answer.header.message_type is not MessageType.method_return:
            raise NotShownError("no program shows notifications")
        return int(answer.body[0])
    except NotShownError:
        raise
    except Exception as error:  # the library raises errors of every kind; none may end this program
        raise NotShownError(str(error) or type(error).__name__) from error


class Notifier:
    """Shows each change once, in place of the previous notification.

    Args:
        address: of the session's bus.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._shown: tuple[str, str, bool] | None = None
        self._number = 0
        self._failed = False

    def show(self, status: Status) -> bool:
        """Show a status unless it is shown already; returns whether it could."""
        message = find_message(status)
        if message == self._shown:
            return False
        try:
            self._number = send(self._address, message, self._number)
        except NotShownError as error:
            if not self._failed:
                click.echo(_("No notification can be shown: {why}").format(why=clean_text(error)), err=True)
            self._failed = True
            return False
        self._failed = False
        self._shown = message
        return True


def watch(runtime_dir: Path, address: str) -> None:
    """Show changes for ever; the daemon may come and go."""
    notifier = Notifier(address)
    while True:
        try:
            for status in client.watch_status(runtime_dir):
                if status.get("state") != "OPEN":
                    # This state may be short: show the state after a moment.
                    time.sleep(SETTLE_SECONDS)
                    notifier.show(client.request_status(runtime_dir))
                else:
                    notifier.show(status)
        except DaemonDownError as error:
            down: Status = {"reason_code": DAEMON_DOWN, "reason": error.why, "next_step": error.next_step}
            time.sleep(SETTLE_SECONDS)
            notifier.show(down)
        time.sleep(RETRY_SECONDS)


@click.command(
    help=_("Show desktop notifications; a unit of the user's session runs this."),
    short_help=_("Show desktop notifications, for a unit of your session."),
)
@click.pass_obj
def notify(runtime_dir: Path) -> int:
    """Run until the session ends."""
    address = os.environ.get("DBUS_SESSION_BUS_ADDRESS")
    if not address:
        raise UserError(
            _("No notification can be shown"),
            _("this is not a desktop session: it has no message bus"),
            _("Start it in your session: systemctl --user start psiphon-vpn-notify"),
        )
    watch(runtime_dir, address)
    return 0


COMMANDS: Final = (notify,)
