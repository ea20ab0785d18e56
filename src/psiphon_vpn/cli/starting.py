# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Locking and starting the installed service, for `start`; and what `install` and others do in the same way."""

from __future__ import annotations

import signal
import sys

from psiphon_vpn.errors import UserError
from psiphon_vpn.i18n import _
from psiphon_vpn.system import install as installation
from psiphon_vpn.system import release as releasing
from psiphon_vpn.system.layout import SERVICE_UNIT
from psiphon_vpn.system.next_step import Need, advise
from psiphon_vpn.system.platform import Platform
from psiphon_vpn.system.sessions import RemoteSessionsError, describe_sessions, find_sessions
from psiphon_vpn.system.set_up import SetUp, find_set_up
from psiphon_vpn.terminal import echo
from psiphon_vpn.wrapping import fit


def say(line: str) -> None:
    """Print a paragraph. The terminal may be gone: closing the lock ends the SSH session of this command."""
    try:
        echo(fit(line, sys.stderr), err=True)
    except OSError:
        return


def check_sessions(platform: Platform, *, cut_remote: bool) -> None:
    """Refuse to end connections from outside without agreement. A locked machine has none.

    Raises:
        RemoteSessionsError: there are connections from outside.
    """
    if platform.kernel.is_locked() is True:
        return
    sessions = find_sessions()
    if not sessions:
        return
    if not cut_remote:
        raise RemoteSessionsError(sessions)
    say(describe_sessions(sessions)[:1].upper() + describe_sessions(sessions)[1:] + ".")


def survive_hangup() -> None:
    """Go on when this command itself ends the SSH session that it runs in."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def start_if_stopped(platform: Platform, *, cut_remote: bool) -> bool:
    """Lock and start the service if it does not run. Returns whether that was necessary.

    Raises:
        UserError: it cannot be started, or would end connections from outside.
    """
    if find_set_up(platform.layout) is SetUp.NO:
        advice = advise(Need.SERVICE, platform.layout)
        raise UserError(_("Nothing was started"), advice.why, advice.step)
    if not platform.manager.is_running() or not (platform.layout.unit_dir / SERVICE_UNIT).exists():
        return False
    if (sentence := installation.find_interruption(platform)) is not None:
        say(sentence)
    check_sessions(platform, cut_remote=cut_remote)
    if platform.manager.is_active(SERVICE_UNIT) and platform.kernel.is_locked() is True:
        return False
    survive_hangup()
    releasing.start(platform)
    return True
