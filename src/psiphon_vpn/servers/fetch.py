# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Fetches a signed server list in the open, before the lock closes: the main address twice, then the mirrors.

Mirrors have no certificate for their names, so anybody on the way can answer for them: only the signature of the list
counts. It is verified here, so that a false answer costs no more than that one attempt. This module uses the network as
it is: on a locked machine it reaches nobody.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from psiphon_vpn.core.fetch import Limits, describe_source, fetch_core
from psiphon_vpn.core.fetch_errors import FetchError, FetchProblem
from psiphon_vpn.i18n import _
from psiphon_vpn.servers.errors import ListError, ListFlaw
from psiphon_vpn.servers.isolated import read_signed_list
from psiphon_vpn.servers.profile import ListUrl, Profile
from psiphon_vpn.servers.signed_list import MAX_SIGNED

LIMITS: Final = Limits(total=120.0, idle_attempts=1)
"""Of one attempt: somebody waits for it."""
_ATTEMPTS_AT_MAIN: Final = 2


class ListFetchError(ListError):
    """No address gave a list.

    Attributes:
        problem: why the main address did not.
    """

    def __init__(self, cause: FetchError) -> None:
        why = cause.why
        if cause.problem is FetchProblem.TOO_LARGE:
            why = _("the file is larger than a list can be")
        # What is wrong here can be changed here; otherwise somebody else's list helps.
        step = cause.next_step
        if cause.problem not in {FetchProblem.TLS, FetchProblem.DISK}:
            step = _("Try again, or bring a file that somebody else has made: sudo psiphon-vpn setup --bundle FILE")
        super().__init__(ListFlaw.NOT_FETCHED, why, step, what=_("The list of servers was not downloaded"))
        self.problem = cause.problem


@dataclass(frozen=True, kw_only=True)
class FetchedList:
    """A list that was fetched and verified.

    Attributes:
        content: the signed file, byte for byte.
        source: the address that gave it, in a form that may be recorded.
    """

    content: bytes = field(repr=False)
    source: str


def fetch_list(
    profile: Profile, directory: Path, *, tls: ssl.SSLContext | None = None, limits: Limits | None = None
) -> FetchedList:
    """Fetch the list from the first address that gives one with the right signature.

    Args:
        profile: whose list.
        directory: where only the caller can write; nothing stays there.
        tls: certificates that count at the main address; None: those of this system.
        limits: of each attempt; their size is a list's.

    Raises:
        ListError: no address gave such a list: what was wrong at the first. ListFetchError, if it gave nothing at all.
    """
    limits = replace(limits or LIMITS, size=MAX_SIGNED)
    main, *mirrors = profile.list_urls
    first: ListError | None = None
    for address in (*(main,) * _ATTEMPTS_AT_MAIN, *mirrors):
        try:
            content = _fetch(address, directory, tls, limits)
            read_signed_list(content, profile)
        except FetchError as error:
            first = first or ListFetchError(error)
        except ListError as error:
            if error.flaw is ListFlaw.CHECKER:
                raise  # no other list can be verified either
            first = first or error
        else:
            return FetchedList(content=content, source=describe_source(address.url))
    assert first is not None
    raise first


def _fetch(address: ListUrl, directory: Path, tls: ssl.SSLContext | None, limits: Limits) -> bytes:
    path = fetch_core(address.url, directory, tls=tls if address.verify_tls else _accept_anybody(), limits=limits)
    try:
        return path.read_bytes()
    except OSError as error:
        raise FetchError(FetchProblem.DISK, error.strerror or str(error), _("Try again.")) from error
    finally:
        # A file that is complete would be resumed to the same file.
        path.unlink(missing_ok=True)


def _accept_anybody() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context
