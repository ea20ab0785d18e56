# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The password of a proxy that a person gives to a command: never on the command line, which everybody here sees."""

from __future__ import annotations

import sys
from urllib.parse import quote, urlsplit, urlunsplit

import click

from psiphon_vpn.i18n import _


def ask_password() -> str:
    """The proxy's password: asked for in a terminal, without showing it; otherwise the first line of standard input."""
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    text: str = click.prompt(_("The proxy's password"), hide_input=True, default="", show_default=False, err=True)
    return text


def refuse_password(password: str | None) -> None:
    """Refuse a password on the command line; raises click.UsageError, which does not repeat it."""
    if password:
        raise click.UsageError(
            _("Everybody on this computer sees a command line: give the user without the password. It is asked for.")
        )


def complete_url(url: str) -> str:
    """The URL of a proxy with the password of its user, if it names one.

    Raises:
        click.UsageError: it has a password.
    """
    try:
        parts = urlsplit(url)
        user, password = parts.username, parts.password
    except ValueError:
        return url  # whoever uses it says that it is none
    refuse_password(password)
    if not user:
        return url
    host = parts.netloc.rpartition("@")[2]
    # The user name stays as it was given: it is quoted already.
    return urlunsplit(parts._replace(netloc=f"{user}:{quote(ask_password(), safe='')}@{host}"))
