# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The laboratory's addresses. Constants only.

Addresses are from the documentation ranges of RFC 5737 (192.0.2.0/24, 198.51.100.0/24, 203.0.113.0/24) and RFC 3849
(2001:db8::/32). Every world uses the same addresses: namespaces separate worlds, not numbers.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Lan:
    """One provider's local network, as the client sees it.

    `interface` is the client's end of the cable; `port` is the provider's end, where the capture runs.
    """

    name: str
    interface: str
    port: str
    mac: str
    network4: str
    network6: str
    client4: str
    client6: str
    router4: str
    router6: str
    prefix4: int
    prefix6: int


LAN_A = Lan(
    name="provider_a", interface="eth0", port="client", mac="02:50:53:00:0a:10",
    network4="192.0.2.0/25", network6="2001:db8:a::/64",
    client4="192.0.2.10", client6="2001:db8:a::10", router4="192.0.2.1", router6="2001:db8:a::1",
    prefix4=25, prefix6=64,
)  # fmt: skip
LAN_B = Lan(
    name="provider_b", interface="eth1", port="client", mac="02:50:53:00:0b:10",
    network4="192.0.2.128/25", network6="2001:db8:b::/64",
    client4="192.0.2.138", client6="2001:db8:b::10", router4="192.0.2.129", router6="2001:db8:b::1",
    prefix4=25, prefix6=64,
)  # fmt: skip

NEIGHBOUR4 = "192.0.2.20"
NEIGHBOUR6 = "2001:db8:a::20"

BACKBONE4 = "203.0.113.1"
BACKBONE6 = "2001:db8:ffff::1"
BACKBONE_A4 = "203.0.113.2"
BACKBONE_A6 = "2001:db8:ffff::2"
BACKBONE_B4 = "203.0.113.3"
BACKBONE_B6 = "2001:db8:ffff::3"
INTERNET4 = "203.0.113.80"
INTERNET6 = "2001:db8:ffff::80"

# The host of the signed list. Not documentation addresses: the service accepts only public addresses for it. IANA
# reserves 192.0.1.0/24, and has allocated nothing in 2d00::/8.
LIST_HOST4 = "192.0.1.90"
LIST_HOST6 = "2d00::90"

SERVER4 = "198.51.100.10"
SERVER6 = "2001:db8:5::10"
SERVER_GATEWAY4 = "198.51.100.1"
SERVER_GATEWAY6 = "2001:db8:5::1"
SERVER_PORT = 4443
SERVER_TLS_PORT = 443
# What a real psiphond serves besides those two.
REAL_PORTS = {
    "OSSH": SERVER_PORT,
    "TLS-OSSH": SERVER_TLS_PORT,
    "SHADOWSOCKS-OSSH": 4447,
    "QUIC-OSSH": 4445,
    "UNFRONTED-MEEK-HTTPS-OSSH": 8443,
}
# Source ports of the stand-in core's connections to the server. No probe or shot binds one, and the kernel assigns
# none.
CORE_PORTS = range(61000, 61500)
# The tunnel server's own resolver, on the server: transparent DNS leads there.
SERVER_RESOLVER4 = "198.51.100.53"
SERVER_RESOLVER6 = "2001:db8:5::53"

CONTAINER4 = "10.88.0.2"
CONTAINER6 = "fd00:88::2"
CONTAINER_GATEWAY4 = "10.88.0.1"
CONTAINER_GATEWAY6 = "fd00:88::1"

# The tunnel's own addresses (R10). The judge needs them: no frame on a wire may contain them.
TUNNEL_NETWORKS = ("10.200.3.0/24", "fd42:42:42::/64")
RESOLVER4 = "10.200.3.2"


@dataclass(frozen=True, kw_only=True)
class Place:
    """The place of a tunnel server. Each has its own network.

    host: the lab host on which it runs. port: the backbone's end of its cable.
    """

    host: str
    port: str
    region: str
    address4: str
    address6: str
    gateway4: str
    gateway6: str
    prefix4: int
    prefix6: int = 64


FIRST_PLACE = Place(
    host="server", port="server", region="NL",
    address4=SERVER4, address6=SERVER6, gateway4=SERVER_GATEWAY4, gateway6=SERVER_GATEWAY6, prefix4=24,
)  # fmt: skip
MORE_PLACES = (
    Place(
        host="server_de", port="server_de", region="DE",
        address4="198.51.100.66", address6="2001:db8:6::10",
        gateway4="198.51.100.65", gateway6="2001:db8:6::1", prefix4=29,
    ),
    Place(
        host="server_se", port="server_se", region="SE",
        address4="198.51.100.74", address6="2001:db8:7::10",
        gateway4="198.51.100.73", gateway6="2001:db8:7::1", prefix4=29,
    ),
)  # fmt: skip

ZONE = "lab.example"
ECHO_NAME = f"echo.{ZONE}"
WHOAMI_NAME = f"whoami.{ZONE}"
RESOLVER_NAME = f"resolver.{ZONE}"
LIST_NAME = f"lists.{ZONE}"

# Each resolver identifies itself with a mark: its TXT answer for RESOLVER_NAME and every name below it.
MARK_LAN = "lan"
MARK_INTERNET = "internet"
MARK_TUNNEL = "in-tunnel"
