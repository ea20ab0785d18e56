# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Routing rules, routes and the TUN: added again at once when one of them is gone."""

import logging
from collections.abc import Sequence
from socket import if_indextoname, if_nametoindex

from psiphon_vpn.linux.ipv6 import Ipv6
from psiphon_vpn.linux.rtbatch import encode_route, encode_rule, encode_tun
from psiphon_vpn.linux.rtnetlink import RouteSocket
from psiphon_vpn.linux.tun import TunError, make_tun
from psiphon_vpn.policy import names
from psiphon_vpn.policy.routing import IPV4, RoutingRule, build_routes

log = logging.getLogger(__name__)


class BlindRestorer:
    """Adds what is missing, without reading anything first.

    Args:
        uid: the owner of a TUN that is made again.
        socket: by which the changes are made.
    """

    def __init__(self, uid: int, socket: RouteSocket) -> None:
        self._uid = uid
        self._socket = socket
        self._made = 0
        """Index of the TUN that was made in place of a deleted one."""

    def restore(self, tun_index: int, *, rules: Sequence[RoutingRule], ipv6_probe: tuple[str, ...], ipv6: Ipv6) -> bool:
        """Put back what stands in every state. Never fails: a later check finds what could not be put back.

        Args:
            tun_index: index of the TUN that was made. Made again if it is gone; another device with its name stays.
            rules: the routing rules.
            ipv6_probe: name servers with a route of their own.
            ipv6: what the TUN has of IPv6.

        Returns:
            Whether the TUN was made again.
        """
        made = False
        try:
            index = tun_index if _is_tun(tun_index) else self._made
            if not _is_tun(index):
                make_tun(self._uid)
                index = self._made = if_nametoindex(names.TUN_NAME)
                made = True
            on, known = ipv6 is Ipv6.ON, ipv6 is not Ipv6.ABSENT
            routes = build_routes(tun=True, open_ipv4=False, open_ipv6=False, ipv6_probe=ipv6_probe, ipv6=on)
            refused = self._socket.add(
                [
                    *encode_tun(index, ipv6=on),
                    *(encode_route(route, index) for route in routes if route.version == IPV4 or known),
                    *(encode_rule(rule) for rule in rules if rule.version == IPV4 or known),
                ]
            )
            if refused:
                log.info("not put back at once: %d requests, the first %s", len(refused), refused[0])
        except (TunError, OSError) as error:
            log.info("the network could not be put back at once: %s", error)
        return made


def _is_tun(index: int) -> bool:
    """Whether the device with this index has the TUN's name."""
    try:
        return if_indextoname(index) == names.TUN_NAME
    except OSError:
        return False
