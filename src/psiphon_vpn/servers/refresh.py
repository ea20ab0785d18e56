# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Fetches a newer server list through the open tunnel, or not at all: a timer asks for it, as root.

The connection goes to the tunnel's own SOCKS proxy on this machine, which looks the host's name up at the far end. So
nothing of it can leave by another way, on a released machine neither. A person can give another proxy instead, by its
address. Nothing exempts the connection to it from the lock: it goes where any program's would. Either way a process
that can open nothing speaks over it (`direct_fetch.py`), and the list is verified and stored like every other.

When the list's own host fails, its mirrors are asked in turn, inside the tunnel alone (`list_hosts.py`). Whoever
answers for one can send an old list, so what would be a question to a person is none there: the next is asked.
"""

from __future__ import annotations

import enum
import os
import socket
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from typing import Final

from psiphon_vpn.i18n import _
from psiphon_vpn.policy.model import Endpoint
from psiphon_vpn.servers.errors import QUESTIONS, ListError, ListFlaw
from psiphon_vpn.servers.fetch_order import FETCHER, Order, ProxyAccess, Refusal, RefusedError, read_answer
from psiphon_vpn.servers.hints import PORT
from psiphon_vpn.servers.list_hosts import ListHost, find_list_hosts, find_mirrors
from psiphon_vpn.servers.profile import Profile
from psiphon_vpn.servers.proxies import Proxy
from psiphon_vpn.servers.record import ListRecord
from psiphon_vpn.servers.signed_list import MAX_SIGNED
from psiphon_vpn.servers.store import ListChange, ServerStore
from psiphon_vpn.unprivileged import Limits, UnprivilegedError, run_unprivileged

DUE_AGE: Final = timedelta(hours=20)
MAX_LEAD: Final = timedelta(days=1)
"""A list from further in the future has a wrong date, and would never become old."""
CONNECT_SECONDS: Final = 10.0
_LOOPBACK: Final = IPv4Address("127.0.0.1")
ONE_SECONDS, MIRROR_SECONDS, ALL_SECONDS = 150.0, 40.0, 240.0
"""For the list's own host, for one mirror, and after which no other is asked: the timer's unit has 300 s."""
_STOPPED_HERE: Final = frozenset({Refusal.PROXY_UNREACHED, Refusal.PROXY_ODD, Refusal.PROXY_LOGIN})
"""After these no other host is reached either."""
_LASTING: Final = frozenset({ListFlaw.CHECKER, ListFlaw.DISK, ListFlaw.BUSY, ListFlaw.NO_PROFILE})
"""Flaws of this machine: another host's list has them too."""


class NotNow(enum.StrEnum):
    """Why nothing is fetched, which is no failure."""

    NOT_DUE = "not_due"
    CLOSED = "closed"
    """The tunnel is not open, or it has no SOCKS proxy now."""


class UnreachedError(RefusedError):
    """The proxy itself is not reached.

    Attributes:
        why: in the system's words.
    """

    def __init__(self, why: str) -> None:
        super().__init__(Refusal.PROXY_UNREACHED)
        self.why = why


Fetch = Callable[[ListHost, Proxy, float], bytes]
"""Fetches a host's list through a proxy, which is asked for its name, in so many seconds; raises RefusedError."""


def find_tunnel(status: Mapping[str, object]) -> Proxy | None:
    """The tunnel's SOCKS proxy on this machine, by the service's status; None if there is none now."""
    socks = status.get("socks")
    if status.get("state") != "OPEN" or not isinstance(socks, Mapping) or socks.get("available") is not True:
        return None
    port = socks.get("port")
    if not isinstance(port, int) or not 0 < port < 1 << 16:
        return None
    return Proxy(Endpoint(address=_LOOPBACK, port=port), ProxyAccess(scheme="socks5"))


def is_due(record: ListRecord | None, *, profile: str, now: datetime) -> bool:
    """Whether a list is to be fetched: there is none of this profile, or it is old, or its date cannot be right."""
    if record is None or record.profile != profile:
        return True
    age = now - datetime.fromisoformat(record.fetched_at).astimezone(UTC)
    return age >= DUE_AGE or age < -MAX_LEAD


def refresh(
    store: ServerStore,
    profile: Profile,
    status: Mapping[str, object],
    *,
    only_if_due: bool,
    now: datetime,
    proxy: Proxy | None = None,
    fetch: Fetch | None = None,
    accepted: bool = False,
) -> ListChange | NotNow:
    """Fetch the list through the tunnel, or the proxy that a person gave, and put it into use.

    Args:
        store: the lists.
        profile: in use.
        status: the service's.
        only_if_due: do nothing if the list in use is not old.
        now: UTC.
        proxy: instead of the tunnel's.
        fetch: fetches a host's list.
        accepted: a person takes it also if it is much smaller, or was in use before.

    Raises:
        ListError: nothing was changed. A list that is much smaller, or was seen before, is a question for a person.
    """
    if only_if_due and not is_due(_read_current(store), profile=profile.name, now=now):
        return NotNow.NOT_DUE
    way = proxy or find_tunnel(status)
    if way is None:
        return NotNow.CLOSED
    mirrors = find_mirrors(profile) if proxy is None else ()
    begin, first = time.monotonic(), None
    for host in (*find_list_hosts(profile), *mirrors):
        left = begin + ALL_SECONDS - time.monotonic()
        if first is not None and left <= 0:
            break
        try:
            content = (fetch or fetch_through)(host, way, min(left, ONE_SECONDS if host.proves else MIRROR_SECONDS))
            # What a person accepts was said of the list's own host.
            accept = accepted and host.proves
            source = f"https://{host.host}{host.path}"
            return store.add(content, source=source, profile=profile, allow_smaller=accept, allow_seen=accept)
        except RefusedError as refused:
            first = first or _explain_refused(refused, proxy)
            if refused.refusal in _STOPPED_HERE:
                break
        except ListError as error:
            if error.flaw in _LASTING or (error.flaw in QUESTIONS and host.proves):
                raise
            first = first or error
    raise first or _explain(Refusal.NO_FILE, proxy)


def _explain_refused(refused: RefusedError, proxy: Proxy | None) -> ListError:
    if proxy and isinstance(refused, UnreachedError):
        return _explain_unreached(refused.why, proxy)
    return _explain(refused.refusal, proxy)


def _read_current(store: ServerStore) -> ListRecord | None:
    try:
        return store.read_current()
    except ListError:
        return None  # a new one takes its place


def fetch_through(host: ListHost, proxy: Proxy, seconds: float) -> bytes:
    """Fetch a host's list over a proxy.

    Args:
        host: which.
        proxy: it is asked for the host's name.
        seconds: for all of it but the connection to the proxy.

    Raises:
        RefusedError: there is no file.
    """
    order = Order(
        host=host.host,
        path=host.path,
        address=host.host,
        port=PORT,
        proxy=proxy.access,
        high=MAX_SIGNED,
        proves=host.proves,
    )
    limits = Limits(memory=512 << 20, cpu=30, wait=seconds, output=MAX_SIGNED + 1)
    endpoint = proxy.endpoint
    try:
        connection = socket.create_connection((str(endpoint.address), endpoint.port), CONNECT_SECONDS)
    except OSError as error:
        raise UnreachedError(os.strerror(error.errno) if error.errno else _("no answer")) from error
    with connection:
        number = connection.fileno()
        try:
            answer = run_unprivileged(FETCHER, (str(number),), order.render(), limits, pass_fds=(number,))
        except UnprivilegedError as error:
            raise RefusedError(Refusal.SILENT) from error
    return read_answer(answer)


def _explain(refusal: Refusal, proxy: Proxy | None) -> ListError:
    why = {
        Refusal.WRONG_HOST: _("the host of the list cannot prove that it is the right one"),
        Refusal.NO_FILE: _("the host of the list does not give it"),
        Refusal.SILENT: _("the host of the list does not answer"),
        Refusal.PROXY: _("the proxy gives no connection to the host of the list")
        if proxy
        else _("the tunnel gives no connection to the host of the list"),
        Refusal.PROXY_UNREACHED: _("the tunnel's SOCKS proxy is not reached"),  # of another, `_explain_unreached`
        Refusal.PROXY_ODD: _("what is there does not answer as a proxy of that kind does")
        if proxy
        else _("what answers at the port of the tunnel's SOCKS proxy is another program"),
        Refusal.PROXY_LOGIN: _("the proxy refuses the user name and password, or wants them in another form than Basic")
        if proxy
        else _("what answers at the port of the tunnel's SOCKS proxy is another program"),
    }[refusal]
    step = _("The list in use stays in use; it is tried again later.")
    return _not_fetched(why, _advise_file() if proxy else step)


def _explain_unreached(cause: str, proxy: Proxy) -> ListError:
    """Why the proxy that a person gave is not reached. The lock is not asked: it is one of the causes, and is named."""
    address = proxy.endpoint.address
    why = _("the proxy at {address}, port {port}, cannot be reached ({cause})").format(
        address=address, port=proxy.endpoint.port, cause=cause
    )
    if address.is_loopback:
        return _not_fetched(why, f"{_('See that it runs.')} {_advise_file()}")
    step = _("While this computer is locked, the way to a proxy elsewhere is blocked, except through the open tunnel.")
    return _not_fetched(why, f"{step} {_advise_file()}")


def _advise_file() -> str:
    return _("The list in use stays in use. A newer one can come as a file: sudo psiphon-vpn servers import FILE")


def _not_fetched(why: str, next_step: str) -> ListError:
    return ListError(ListFlaw.NOT_FETCHED, why, next_step, what=_("No newer server list was fetched"))
