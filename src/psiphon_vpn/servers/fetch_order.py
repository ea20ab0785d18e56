# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What is asked of the process that fetches (`direct_fetch`), and its answer.

They are apart from what it does: the daemon imports them, and has no use for what TLS and HTTP take up in memory.
"""

from __future__ import annotations

import enum
import json
from dataclasses import asdict, dataclass
from typing import Final

FETCHER: Final = "psiphon_vpn.servers.direct_fetch"
"""The module whose `work` fetches. Never imported here: it reads the system's certificates when it is."""
FETCHED: Final = b"+"
"""Before the file in an answer."""


class Refusal(enum.StrEnum):
    """Why there is no file."""

    WRONG_HOST = "wrong_host"
    """It answered, and did not prove that it is the host, or broke off while it should."""
    NO_FILE = "no_file"
    """It is the host, and does not give the file."""
    SILENT = "silent"
    """No answer, or no more of it."""
    PROXY = "proxy"
    """The proxy answers, and does not connect to the host."""
    PROXY_UNREACHED = "proxy_unreached"
    """The proxy itself is not reached."""
    PROXY_ODD = "proxy_odd"
    """What is there does not answer as a proxy of this kind does."""
    PROXY_LOGIN = "proxy_login"
    """The proxy wants a user name and a password, or others than it was given."""


class RefusedError(Exception):
    """There is no file.

    Attributes:
        refusal: why.
    """

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal)
        self.refusal = refusal


@dataclass(frozen=True, kw_only=True)
class ProxyAccess:
    """How to have an upstream proxy connect.

    Attributes:
        scheme: "http" or "socks5".
        user: and password; empty for none.
    """

    scheme: str
    user: str = ""
    password: str = ""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What to fetch.

    Attributes:
        host: its name, which the certificate must have.
        path: of the file; empty if the host is only to prove its name.
        address: of the host; a proxy is asked for it. The host's name instead is only for the tunnel's own proxy, which
            looks it up at the far end, and for one that a person gives for that: nobody else is asked for a name.
        port: likewise.
        proxy: what is at the other end of the connection; None if it is the host.
        high: greatest size of the file in bytes.
        proves: whether the host must have a certificate for its name. Without one, only what is fetched can tell.
    """

    host: str
    path: str
    address: str
    port: int
    proxy: ProxyAccess | None
    high: int
    proves: bool = True

    def render(self) -> bytes:
        """For `work`, by standard input: the proxy's password is not for a list of processes."""
        return json.dumps(asdict(self)).encode()


def read_answer(answer: bytes) -> bytes:
    """The file out of what `work` returned.

    Raises:
        RefusedError: there is none.
    """
    if answer[:1] == FETCHED:
        return answer[1:]
    try:
        raise RefusedError(Refusal(answer.decode("ascii", "replace")))
    except ValueError:
        raise RefusedError(Refusal.SILENT) from None
