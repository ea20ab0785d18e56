# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What the daemon holds in the kernel: the state that loading, reading back and restoring share."""

import asyncio

from psiphon_vpn.linux.card_filters import CardFilters
from psiphon_vpn.linux.commits import Commits
from psiphon_vpn.linux.features import Features
from psiphon_vpn.linux.ipv6 import Ipv6, read_ipv6
from psiphon_vpn.linux.lease import Lease
from psiphon_vpn.linux.lock import LockView
from psiphon_vpn.linux.nfnetlink import NftSocket
from psiphon_vpn.linux.refused_wires import RefusedWires
from psiphon_vpn.linux.rtnetlink import RouteSocket
from psiphon_vpn.linux.sysctl import check_sysctls
from psiphon_vpn.linux.tables import Tables
from psiphon_vpn.linux.traffic import NetlinkTraffic
from psiphon_vpn.linux.tun import Tun
from psiphon_vpn.linux.uplink_entries import put_entries_back
from psiphon_vpn.policy import names
from psiphon_vpn.policy.model import Identity, Policy
from psiphon_vpn.policy.routing import Route, build_rules
from psiphon_vpn.policy.sysctls import SYSCTLS


class Held:
    """The policy in force, and everything that stands in the kernel for it.

    Args:
        identity: the user whose sockets may use the wire.
        netlink: by which the ruleset is read and committed to.
        routes: by which links, routes and filters are changed.
        features: what this kernel supports.
        commits: other programs' commits; without it every commit leads to a reading.
    """

    def __init__(
        self,
        *,
        identity: Identity,
        netlink: NftSocket,
        routes: RouteSocket,
        features: Features,
        commits: Commits | None,
    ) -> None:
        self.identity = identity
        self.features = features
        self.socket = routes
        self.tables = Tables(netlink, commits)
        self.lease = Lease(netlink, self.tables)
        self.filters = CardFilters(NetlinkTraffic(routes) if features.traffic_filters else None)
        self.refused = RefusedWires()
        self.turn = asyncio.Lock()
        """For one change or check at a time: a check must not see half a change. `Lease.close` does not wait for it."""
        self.policy: Policy | None = None
        self.tun: Tun | None = None
        self.rules = build_rules(identity)
        self.routes: tuple[Route, ...] = ()
        self.ipv6 = Ipv6.ON
        """What the TUN had of IPv6 when the policy in force was made."""
        self.routing_trouble: str | None = None
        """What the last check of rules, routes and TUN found wrong."""

    @property
    def view(self) -> LockView:
        """What is held now, as one value."""
        return LockView(
            tun=self.tun,
            ipv6=self.ipv6,
            cover=self.lease.cover,
            ran_out=self.lease.ran_out,
            routing_trouble=self.routing_trouble,
            wires=self.policy.links.wires if self.policy is not None and self.features.egress_hook else (),
            guards=self.tables.beside,
            refused_for=self.refused.wait,
            cards=self.filters.cards,
            standings=self.filters.standings,
        )

    @property
    def probes(self) -> tuple[str, ...]:
        """The name servers that show whether the tunnel carries IPv6. They have routes of their own."""
        return tuple(map(str, self.policy.ipv6_probe)) if self.policy else ()

    def find_changed_settings(self) -> str | None:
        """Which kernel settings somebody changed. Loading a policy sets them again."""
        if changed := check_sysctls(SYSCTLS):
            return f"somebody changed {', '.join(changed)}"
        now = read_ipv6(names.TUN_NAME)
        return None if now is self.ipv6 else f"IPv6 was turned {'on' if now is Ipv6.ON else 'off'} on this machine"

    async def fit_filters(self) -> bool:
        """Make the filters fit the guards that were just read back. Returns whether a filter was put back."""
        if self.policy is None:
            return False
        guarded = self.tables.guarded if self.features.egress_hook else frozenset[str]()
        return await self.filters.fit(self.policy, guarded)

    async def put_entries_back(self) -> None:
        """Put back the kernel's own entries for the uplink's addresses. Raises OSError."""
        if self.policy is not None and self.policy.links.uplink is not None:
            await put_entries_back(self.socket, self.policy.links.uplink)
