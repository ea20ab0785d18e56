# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Puts a policy into the kernel: the TUN, rules, routes, settings, and the filters that belong to the guards."""

import logging
from collections.abc import Callable
from functools import lru_cache

from psiphon_vpn.linux.held import Held
from psiphon_vpn.linux.ipv6 import Ipv6, read_ipv6
from psiphon_vpn.linux.lock import EnforcementError
from psiphon_vpn.linux.loopback import name_loopback
from psiphon_vpn.linux.nft import RulesetError
from psiphon_vpn.linux.refused_wires import find_indexes
from psiphon_vpn.linux.routes import RoutingError, apply_routes, apply_rules
from psiphon_vpn.linux.sysctl import apply_sysctls
from psiphon_vpn.linux.tun import Tun, TunError, TunSetDown, ensure_tun, find_tun_set_down
from psiphon_vpn.policy import names
from psiphon_vpn.policy.base import build_base_table
from psiphon_vpn.policy.guards import build_arp_table, build_egress_guard
from psiphon_vpn.policy.guests import list_networks
from psiphon_vpn.policy.missing_parts import do_without
from psiphon_vpn.policy.model import Policy, State
from psiphon_vpn.policy.routing import build_routes, build_rules
from psiphon_vpn.policy.ruleset import Table
from psiphon_vpn.policy.sysctls import SYSCTLS
from psiphon_vpn.policy.values import InterfaceName

log = logging.getLogger(__name__)

# A table is a value, made of nothing but these arguments. One event asks for the same several times.
_build_base_table = lru_cache(maxsize=8)(build_base_table)
_build_egress_guard = lru_cache(maxsize=8)(build_egress_guard)


def _build_guard(policy: Policy, wires: tuple[InterfaceName, ...]) -> Table | None:
    links = policy.links
    return _build_egress_guard(
        policy.identity, wires, links.dhcp_servers, headerless=links.headerless, on_link=links.on_link
    )


class PolicyLoader:
    """Loads policies. See `lock.Loader`.

    Args:
        held: what it changes.
    """

    def __init__(self, held: Held) -> None:
        self._held = held
        self._suspect = False
        """Whether the kernel refused a route through the TUN. The next load then replaces it, right or not."""

    async def load(
        self, policy_for: Callable[[Tun | None], Policy], *, odd_wires: tuple[str, ...], replace_tun: bool
    ) -> None:
        """Close; then the TUN, the rules, the routes, the settings and the filters, in this order."""
        self._held.lease.close()
        async with self._held.turn:
            try:
                tun = await self._ensure_tun(anew=replace_tun)
                await self._load(policy_for(tun), odd_wires)
            except TunError:
                # Without a TUN there is still a lock, and it comes first.
                await self._load(policy_for(None), odd_wires)
                raise

    async def amend(self, policy: Policy, *, odd_wires: tuple[str, ...]) -> bool:
        """Replace single rules, with the lease's sets as they are."""
        held = self._held
        async with held.turn:
            held.filters.odd_wires = odd_wires
            try:
                await held.filters.shed(policy)
                done = await held.tables.amend(self._build_base(policy), *self._build_beside(policy))
            except (RulesetError, OSError) as error:
                log.warning("rules could not be amended: %s", error)
                held.lease.close()
                return False
            if done:
                held.policy = policy
                await held.fit_filters()
            return done

    async def rehearse(self, policy: Policy) -> None:
        """Take the image of its base table from a dormant copy."""
        async with self._held.turn:
            try:
                await self._held.tables.rehearse(self._build_base(policy))
            except RulesetError as error:
                log.debug("not rehearsed: %s", error)

    async def guard_refused(self) -> bool:
        """Try those wires again for which it is time. Nothing is closed for it; the next renewal reads all back.

        Returns:
            Whether one has its guard now.

        Raises:
            RulesetError: the guard was loaded, and is not what it should be.
            OSError: the kernel does not answer.
        """
        held = self._held
        async with held.turn:
            due, policy, guarded = held.refused.take_due(), held.policy, held.tables.guarded
            if policy is None or not due or not held.tables.in_force:
                return False
            table = _build_guard(policy, tuple(name for name in policy.links.wires if name in guarded | due))
            asked = find_indexes(due)
            if table is None or not await held.tables.widen(table):
                return False
            held.refused.note(asked, held.tables.guarded)
            await held.fit_filters()
            return True

    async def open_ipv6(self) -> None:
        """Make the routes for IPv6 into the TUN.

        Raises:
            RoutingError: the kernel refused it.
        """
        async with self._held.turn:
            try:
                await self._set_routes(ipv6=True)
            except TunError as error:
                raise RoutingError(str(error)) from error

    async def _ensure_tun(self, *, anew: bool) -> Tun:
        held = self._held
        anew, self._suspect = anew or self._suspect, False
        if anew:
            held.tun = None  # its end will be announced, and is our own doing
        try:
            held.tun = await ensure_tun(held.socket, uid=held.identity.uid, anew=anew)
        except TunError:
            # Another program may set it down each time. Without knowing the TUN the healer would not notice the fight.
            held.tun = find_tun_set_down(held.identity.uid) or held.tun
            raise
        held.ipv6 = read_ipv6(names.TUN_NAME)
        return held.tun

    async def _load(self, policy: Policy, odd_wires: tuple[str, ...]) -> None:
        held = self._held
        held.policy = policy
        held.filters.odd_wires = odd_wires
        await held.filters.shed(policy)
        beside = self._build_beside(policy)
        asked = find_indexes([name for table in beside for name in table.devices])
        try:
            await held.tables.put(self._build_base(policy), *beside)
            if held.tables.guarded:
                # A guard that loads for no device is no device's fault.
                held.refused.note(asked, held.tables.guarded)
            guests = list_networks(policy.links.bridges)
            held.rules = build_rules(held.identity, guests, loopback=name_loopback())
            await apply_rules(held.socket, held.rules)
            await self._set_routes(ipv6=False)
            await held.put_entries_back()
            held.routing_trouble = None
        except (RulesetError, RoutingError, OSError) as error:
            # A frame that no guard accepted must not leave through a card, whichever guards stand now.
            await held.filters.fit(policy, policy.links.wires if held.features.egress_hook else (), loaded=False)
            raise EnforcementError(str(error)) from error
        for failure in apply_sysctls(SYSCTLS):
            log.warning("kernel setting not made: %s", failure)
        await held.fit_filters()

    def _build_base(self, policy: Policy) -> Table:
        return do_without(_build_base_table(policy), self._held.features.lacking)

    def _build_beside(self, policy: Policy) -> list[Table]:
        beside = [build_arp_table()]
        if self._held.features.egress_hook:
            wires = self._held.refused.leave_out(policy.links.wires, keep=policy.links.stack)
            egress = _build_guard(policy, wires)
            beside += [egress] if egress is not None else []
        return beside

    async def _set_routes(self, *, ipv6: bool) -> None:
        """Make the routes into the TUN that the policy in force opens. Nothing passes there before the lease is taken.

        Args:
            ipv6: for IPv6 too. Not every server carries it, so it stays unreachable until the tunnel has been seen to.

        Raises:
            TunSetDown: the kernel takes no route into the TUN, since another program has just set it down.
            RoutingError: the kernel refused a route, or does not answer.
        """
        held = self._held
        opens = held.policy is not None and held.policy.state is State.OPEN
        tun = held.tun if held.policy is not None and held.policy.links.tun_index is not None else None
        held.routes = build_routes(
            tun=tun is not None,
            open_ipv4=opens,
            open_ipv6=opens and ipv6,
            ipv6_probe=held.probes,
            ipv6=held.ipv6 is Ipv6.ON,
        )
        try:
            await apply_routes(held.socket, held.routes, tun.index if tun else None)
        except RoutingError as error:
            if tun is not None and find_tun_set_down(held.identity.uid) == tun:
                raise TunSetDown(f"{names.TUN_NAME}: {error}") from error
            # Perhaps for a property of the TUN that nothing here checks.
            self._suspect = tun is not None
            raise
        except OSError as error:
            raise RoutingError(str(error)) from error
