# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The upstream proxy as an endpoint that the firewall can confine the core to. Pure."""

from urllib.parse import urlsplit

from psiphon_vpn.policy.model import Endpoint
from psiphon_vpn.policy.values import parse_address

DEFAULT_PORTS = {"http": 80, "socks5": 1080, "socks4a": 1080}


def find_proxy_endpoint(url: str | None) -> Endpoint | None:
    """Address and port of a proxy that is given by address; None for a proxy given by name, or for no proxy."""
    if url is None:
        return None
    try:
        parts = urlsplit(url)
        address = parse_address(parts.hostname or "")
        port = parts.port or DEFAULT_PORTS.get(parts.scheme)
    except ValueError:
        return None
    return Endpoint(address=address, port=port) if port else None
