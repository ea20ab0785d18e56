# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Puts back what other programs change of the lock: at once and without reading, or in turn and with a check."""

import logging
from typing import Literal, assert_never

from psiphon_vpn.linux.held import Held
from psiphon_vpn.linux.loading import PolicyLoader
from psiphon_vpn.linux.lock import Area, Restored, Trouble
from psiphon_vpn.linux.nft import RulesetError
from psiphon_vpn.linux.putback import BlindRestorer
from psiphon_vpn.linux.queueing import remove_foreign
from psiphon_vpn.linux.reading_back import Reader
from psiphon_vpn.policy.values import show_name

log = logging.getLogger(__name__)


class LockRestorer:
    """Puts back. See `lock.Restorer`.

    Args:
        held: what should stand.
        reader: finds what is wrong.
        loader: loads guards.
    """

    def __init__(self, held: Held, reader: Reader, loader: PolicyLoader) -> None:
        self._held = held
        self._reader = reader
        self._loader = loader
        self._network = BlindRestorer(held.identity.uid, held.socket)

    def restore_now(self, area: Literal[Area.RULES, Area.NETWORK]) -> Restored:
        """At once, unless a change of our own is under way."""
        match area:
            case Area.RULES:
                return Restored(rules=self._restore_rules_now())
            case Area.NETWORK:
                return Restored(tun=self._restore_network_now())
            case _ as never:
                assert_never(never)

    async def restore(self, area: Area, *, changed: bool) -> Restored:
        """In its turn."""
        match area:
            case Area.RULES:
                if changed and await self._restore_rules():
                    return Restored(rules=True)
                return Restored(trouble=await self._reader.find_rule_trouble())
            case Area.NETWORK:
                return Restored(trouble=await self._look_at_network())
            case Area.FILTERS:
                return Restored(filters=await self._restore_filters(changed=changed))
            case Area.GUARDS:
                return await self._restore_guards()
            case Area.QUEUE:
                return Restored(queue=await self._clear_queue())
            case _ as never:
                assert_never(never)

    # -- rules --------------------------------------------------------------------------------------------------------

    def _restore_rules_now(self) -> bool:
        tables = self._held.tables
        try:
            if self._held.turn.locked() or not tables.stand or tables.is_current():
                return False
        except OSError:
            return False
        return self._replace_tables()

    async def _restore_rules(self) -> bool:
        """Also by nft. Returns whether there was anything to put back; reading back is another call."""
        tables = self._held.tables
        try:
            if not tables.stand or tables.is_current():
                return False
            async with self._held.turn:
                if tables.is_current():
                    return False
                if not self._replace_tables():
                    await tables.put_back()
        except (RulesetError, OSError) as error:
            log.warning("rules could not be put back at once: %s", error)
        return True

    def _replace_tables(self) -> bool:
        """Close and put back in one transaction: the lease's sets come back empty.

        Closing first would cost a grace period of the kernel's (10 ms) where the base table is gone: a transaction that
        fails is undone only after one (nf_tables_api.c, __nf_tables_abort).
        """
        self._held.lease.void()
        if self._held.tables.put_back_now():
            return True
        self._held.lease.close()
        return False

    # -- routing rules, routes, and the TUN ---------------------------------------------------------------------------

    def _restore_network_now(self) -> bool:
        """A TUN that is gone is made again; that it is another one takes `load` and a new core."""
        held = self._held
        if held.turn.locked() or held.tun is None or held.policy is None:
            return False
        made = self._network.restore(held.tun.index, rules=held.rules, ipv6_probe=held.probes, ipv6=held.ipv6)
        held.lease.close()
        return made

    async def _look_at_network(self) -> Trouble | None:
        held = self._held
        if held.tun is None:
            return None
        try:
            async with held.turn:
                await held.put_entries_back()
                found = await self._reader.find_network_trouble(held.tun)
        except OSError as error:
            found = Trouble(str(error))
        held.routing_trouble = found.detail if found else None
        return found

    # -- filters ------------------------------------------------------------------------------------------------------

    async def _restore_filters(self, *, changed: bool) -> bool:
        if changed:
            self._held.filters.doubt()
        async with self._held.turn:
            return self._held.tables.in_force and await self._held.fit_filters()

    # -- guards -------------------------------------------------------------------------------------------------------

    async def _restore_guards(self) -> Restored:
        try:
            return Restored(guards=await self._loader.guard_refused())
        except (RulesetError, OSError) as error:
            self._held.lease.close()
            return Restored(trouble=Trouble(str(error)))

    # -- the queue before the TUN -------------------------------------------------------------------------------------

    async def _clear_queue(self) -> str:
        held = self._held
        if held.tun is None:
            return ""
        try:
            async with held.turn:
                kinds = await remove_foreign(held.socket, held.tun.index)
        except OSError as error:
            log.warning("traffic control at the TUN could not be read: %s", error)
            return ""
        return ", ".join(map(show_name, kinds))
