# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Fetches a core over HTTPS into a file: resumed where that is safe, limited in time and size, never trusted.

The store verifies the bytes later. This module uses the network as it is: on a locked machine everything but the tunnel
is blocked, and the error says so. It cannot change that.
"""

from __future__ import annotations

import contextlib
import os
import re
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx

from psiphon_vpn.core.fetch_errors import (
    FetchError,
    FetchProblem,
    TryAgainError,
    advise_again,
    advise_another_way,
    explain_http_error,
)
from psiphon_vpn.core.manifest import MAX_CORE_SIZE
from psiphon_vpn.core.partial_download import PartialDownload
from psiphon_vpn.i18n import _

Progress = Callable[[int, int | None], None]
"""Called with the bytes so far, and the total if it is known."""

_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_UNSATISFIED: Final = re.compile(r"bytes \*/(\d+)")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of a download.

    Attributes:
        connect: seconds for a connection.
        stall: seconds without a byte.
        total: seconds for everything.
        idle_attempts: attempts in a row without new data.
        pause: seconds between attempts.
        redirects: number of redirects.
        size: bytes.
    """

    connect: float = 15.0
    stall: float = 30.0
    total: float = 7200.0
    idle_attempts: int = 3
    pause: float = 2.0
    redirects: int = 5
    size: int = MAX_CORE_SIZE


def check_url(text: str) -> httpx.URL:
    """Accept an https address without a user name and password in it.

    Raises:
        FetchError: ADDRESS.
    """
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise _bad_address(_("the address is malformed")) from error
    if url.scheme != "https" or not url.host:
        raise _bad_address(_("the address does not begin with https://"))
    if url.userinfo:
        raise _bad_address(_("the address has a name or password in it"))
    return url


def _bad_address(why: str) -> FetchError:
    return FetchError(FetchProblem.ADDRESS, why, _("Give an address such as https://example.org/psiphon-tunnel-core"))


def describe_source(url: str) -> str:
    """An address in a form that may be recorded: what follows ? or # can be secret."""
    return str(httpx.URL(url).copy_with(query=None, fragment=None))


def fetch_core(
    url: str,
    directory: Path,
    *,
    proxy: str | None = None,
    tls: ssl.SSLContext | None = None,
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> Path:
    """Fetch a file.

    Args:
        url: an https address.
        directory: where only root can write; an earlier download from the same address is resumed.
        proxy: http, https or socks5 address of a proxy, which then resolves names. The environment is ignored.
        tls: trusted certificates; None: those of this system.
        limits: limits of the download.
        progress: called from time to time.

    Returns:
        The complete file; the caller removes it.

    Raises:
        FetchError: the download failed. The bytes so far stay for the next attempt.
    """
    limits = limits or Limits()
    address = check_url(url)
    timeout = httpx.Timeout(limits.stall, connect=limits.connect)
    try:
        client = httpx.Client(verify=tls or ssl.create_default_context(), proxy=proxy, timeout=timeout, trust_env=False)
    except (ValueError, httpx.InvalidURL) as error:
        raise FetchError(
            FetchProblem.PROXY, _("the proxy's address cannot be used"), _("Give one such as socks5://127.0.0.1:1080")
        ) from error
    try:
        with client:
            download = _Download(
                client=client,
                url=address,
                partial=PartialDownload.find(directory, url),
                limits=limits,
                deadline=time.monotonic() + limits.total,
                progress=progress,
                proxied=proxy is not None,
            )
            return download.run()
    except OSError as error:
        why = _("{path} cannot be written: {cause}").format(path=directory, cause=error.strerror or error)
        raise FetchError(FetchProblem.DISK, why, _("Make room there, then run this again.")) from error


@dataclass(frozen=True, kw_only=True)
class _Download:
    """One download, with as many attempts as it needs."""

    client: httpx.Client
    url: httpx.URL
    partial: PartialDownload
    limits: Limits
    deadline: float
    progress: Progress | None
    proxied: bool

    def run(self) -> Path:
        idle = 0
        while True:
            before = self.partial.size
            try:
                self._attempt()
                return self.partial.path
            except TryAgainError as failed:
                idle = 0 if self.partial.size > before else idle + 1
                if idle >= self.limits.idle_attempts or time.monotonic() > self.deadline:
                    raise failed.error from failed
            time.sleep(self.limits.pause)

    def _attempt(self) -> None:
        headers = {"User-Agent": "psiphon-vpn", "Accept-Encoding": "identity"}
        if self.partial.size and self.partial.validator:
            headers |= {"Range": f"bytes={self.partial.size}-", "If-Range": self.partial.validator}
        try:
            with _follow(self.client, self.url, headers, self.limits.redirects) as response:
                if not _is_complete(response, self.partial):
                    self._receive(response, _prepare(response, self.partial, self.limits))
        except httpx.HTTPError as error:
            raise explain_http_error(error, proxied=self.proxied, host=self.url.host) from error

    def _receive(self, response: httpx.Response, total: int | None) -> None:
        size = self.partial.size
        most = self.limits.size if total is None else total
        descriptor = os.open(self.partial.path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(descriptor, "ab", buffering=0) as file:
            for chunk in response.iter_raw():
                size += len(chunk)
                if size > most:
                    raise _too_large(self.partial)
                view = memoryview(chunk)
                while view:
                    view = view[file.write(view) :]
                if self.progress is not None:
                    self.progress(size, total)
                if time.monotonic() > self.deadline:
                    raise FetchError(FetchProblem.STALLED, _("it takes too long"), advise_again())
        if total is not None and size != total:
            raise TryAgainError(FetchError(FetchProblem.TRUNCATED, _("the connection broke off"), advise_again()))


@contextlib.contextmanager
def _follow(client: httpx.Client, url: httpx.URL, headers: dict[str, str], redirects: int) -> Iterator[httpx.Response]:
    """Send the request and follow redirects, but only to https."""
    for _turn in range(redirects + 1):
        with client.stream("GET", url, headers=headers) as response:
            if not response.has_redirect_location:
                yield response
                return
            try:
                url = check_url(str(url.join(response.headers["location"])))
            except (httpx.InvalidURL, FetchError) as error:
                why = _("the server redirects to an address that is not https")
                raise FetchError(FetchProblem.REDIRECT, why, advise_another_way()) from error
    raise FetchError(FetchProblem.REDIRECT, _("the server redirects too often"), advise_another_way())


def _is_complete(response: httpx.Response, partial: PartialDownload) -> bool:
    """Whether the server says that the partial file is already complete (416, RFC 9110, 15.5.17)."""
    if response.status_code != httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
        return False
    said = _UNSATISFIED.fullmatch(response.headers.get("content-range", ""))
    if said and int(said[1]) == partial.size:
        return True
    partial.discard()
    raise TryAgainError(FetchError(FetchProblem.SERVER, _("the server refuses to resume"), advise_another_way()))


def _prepare(response: httpx.Response, partial: PartialDownload, limits: Limits) -> int | None:
    """Check the headers of the answer, prepare the file for its body, and return the total size."""
    code = response.status_code
    if code in {httpx.codes.NOT_FOUND, httpx.codes.GONE}:
        why = _("the server has no such file (it answered {code})").format(code=code)
        raise FetchError(FetchProblem.NOT_FOUND, why, advise_another_way())
    if code >= 500 or code == httpx.codes.TOO_MANY_REQUESTS:
        why = _("the server has trouble (it answered {code})").format(code=code)
        raise TryAgainError(FetchError(FetchProblem.SERVER, why, _("Try again later.")))
    if code not in {httpx.codes.OK, httpx.codes.PARTIAL_CONTENT}:
        why = _("the server refuses (it answered {code})").format(code=code)
        raise FetchError(FetchProblem.REFUSED, why, advise_another_way())
    if response.headers.get("content-encoding", "identity") != "identity":
        raise FetchError(FetchProblem.REFUSED, _("the server sends the file in another form"), advise_another_way())
    if code == httpx.codes.PARTIAL_CONTENT:
        said = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
        if not said or int(said[1]) != partial.size or int(said[2]) + 1 != int(said[3]):
            partial.discard()
            why = _("the server sends another part than requested")
            raise TryAgainError(FetchError(FetchProblem.SERVER, why, advise_another_way()))
        total: int | None = int(said[3])
    else:
        length = response.headers.get("content-length", "")
        total = int(length) if length.isascii() and length.isdigit() else None
        partial.begin(response)
    if total is not None and total > limits.size:
        raise _too_large(partial)
    return total


def _too_large(partial: PartialDownload) -> FetchError:
    partial.discard()
    return FetchError(
        FetchProblem.TOO_LARGE, _("the file is larger than a tunnel program can be"), advise_another_way()
    )
