# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A proxy that connects to the hosts of a list: given by its address, so that nobody looks up its name. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote, urlsplit

from psiphon_vpn.policy.model import Endpoint
from psiphon_vpn.policy.upstream_proxy import find_proxy_endpoint
from psiphon_vpn.servers.fetch_order import ProxyAccess

_SCHEMES: Final = ("http", "socks5")


@dataclass(frozen=True)
class Proxy:
    """A proxy.

    Attributes:
        endpoint: its address and port.
        access: how to have it connect.
    """

    endpoint: Endpoint
    access: ProxyAccess = field(repr=False)


def find_proxy(url: str | None) -> Proxy | None:
    """The proxy of a URL, if it can be used without looking up a name."""
    endpoint = find_proxy_endpoint(url)
    if url is None or endpoint is None:
        return None
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES:
        return None
    access = ProxyAccess(
        scheme=parts.scheme, user=unquote(parts.username or ""), password=unquote(parts.password or "")
    )
    return Proxy(endpoint, access)
