# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Why a download failed: a code, a text, and whether another attempt may help."""

from __future__ import annotations

import enum
import os
import socket
import ssl
from collections.abc import Iterator

import httpx

from psiphon_vpn.errors import UserError
from psiphon_vpn.i18n import _


class FetchProblem(enum.StrEnum):
    """Why a download failed."""

    NO_NETWORK = "no_network"
    DNS = "dns"
    TLS = "tls"
    PROXY = "proxy"
    NOT_FOUND = "not_found"
    REFUSED = "refused"
    SERVER = "server"
    REDIRECT = "redirect"
    TRUNCATED = "truncated"
    STALLED = "stalled"
    TOO_LARGE = "too_large"
    DISK = "disk"
    ADDRESS = "address"


class FetchError(UserError):
    """A download failed."""

    def __init__(self, problem: FetchProblem, why: str, next_step: str) -> None:
        super().__init__(_("The tunnel program was not downloaded"), why, next_step)
        self.problem = problem


class TryAgainError(Exception):
    """This attempt failed, but another one may succeed."""

    def __init__(self, error: FetchError) -> None:
        super().__init__(error)
        self.error = error


def advise_again() -> str:
    """What to do if another attempt may succeed."""
    return _("Run this again: it continues where it stopped.")


def advise_another_way() -> str:
    """What to do if this address is useless."""
    return _("Get the file elsewhere, and install it with: sudo psiphon-vpn update --core-file PATH --sha256 HEX")


def advise_no_way() -> str:
    """What to do on a machine without network access, usually a locked one without a core."""
    return _(
        "While this machine is locked, only the tunnel leads out. If it is open: sudo psiphon-vpn update --via-tunnel;"
        " if not, bring the file from another computer: sudo psiphon-vpn update --core-file PATH --sha256 HEX"
    )


def _list_causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def explain_http_error(error: httpx.HTTPError, *, proxied: bool, host: str) -> FetchError | TryAgainError:
    """Turn an error of httpx into one of ours, wrapped if another attempt may help."""
    causes = list(_list_causes(error))
    system = next((cause for cause in causes if isinstance(cause, OSError)), None)
    if any(isinstance(cause, ssl.SSLError) for cause in causes) and isinstance(error, httpx.ConnectError):
        why = _("{host} cannot prove that it is the right server").format(host=host)
        step = _("Somebody may be listening in, or the clock of this machine is wrong; see 'date'.")
        return FetchError(FetchProblem.TLS, why, step)
    if isinstance(error, httpx.ProxyError) or (
        proxied and isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
    ):
        why = _("the proxy, or the tunnel's SOCKS proxy, gives no connection")
        return FetchError(FetchProblem.PROXY, why, _("See that it runs: psiphon-vpn status"))
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        why = _("the name {host} cannot be resolved").format(host=host)
        return FetchError(FetchProblem.DNS, why, advise_no_way())
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        number = system.errno if system is not None else None
        why = _("{host} cannot be reached ({cause})").format(
            host=host, cause=os.strerror(number) if number else _("no answer")
        )
        return FetchError(FetchProblem.NO_NETWORK, why, advise_no_way())
    if isinstance(error, httpx.TimeoutException):
        again = FetchError(FetchProblem.STALLED, _("no more data arrived"), advise_again())
    else:
        again = FetchError(FetchProblem.TRUNCATED, _("the connection broke off"), advise_again())
    return TryAgainError(again)
