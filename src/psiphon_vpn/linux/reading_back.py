# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads back what stands in the kernel for the policy in force. The only place where a `Proof` comes from."""

from psiphon_vpn.linux.held import Held
from psiphon_vpn.linux.lock import EnforcementError, LedAround, Proof, Trouble
from psiphon_vpn.linux.nft import RulesetError
from psiphon_vpn.linux.routes import check_routing, find_detour
from psiphon_vpn.linux.tun import Tun, TunTrouble, check_tun


class Reader:
    """Compares the kernel with the policy in force.

    Args:
        held: what should stand.
    """

    def __init__(self, held: Held) -> None:
        self._held = held

    async def read_back(self) -> Proof:
        """Everything, in one turn.

        Raises:
            EnforcementError: something is not as it should be; why.
        """
        # Before waiting for the turn: what is closed meanwhile stays closed.
        closings = self._held.lease.closings
        async with self._held.turn:
            return await self._read_back(closings)

    async def _read_back(self, closings: int) -> Proof:
        held = self._held
        if held.tun is None:
            raise EnforcementError("there is no TUN")
        # Only the core's way matters: another wire without a guard passes raw frames in every state, open or not.
        stack = held.policy.links.stack if held.policy is not None else ()
        if bare := [name for name in held.view.unguarded if name in stack]:
            raise EnforcementError(f"there is no egress guard on {', '.join(bare)}")
        try:
            generation = await held.tables.check()
            wrong = held.find_changed_settings()
            if wrong is None and (bad_tun := await self._check_tun(held.tun)):
                wrong = bad_tun.detail
            wrong = wrong or await check_routing(held.rules, held.routes, held.tun.index)
            detour = None if wrong else await find_detour(held.routes, held.tun.index)
        except (RulesetError, OSError) as error:
            raise EnforcementError(str(error)) from error
        if wrong is not None:
            raise EnforcementError(wrong)
        if detour is not None:
            raise LedAround(detour)
        return held.lease.prove(generation, closings)

    async def find_rule_trouble(self) -> Trouble | None:
        """Why the tables are not as they were loaded, be it a policy's or the drop-only table."""
        try:
            async with self._held.turn:
                if self._held.tables.stand:
                    await self._held.tables.look()
        except RulesetError as error:
            return Trouble(str(error))
        return None

    async def find_network_trouble(self, tun: Tun) -> Trouble | None:
        """Why rules, routes, TUN or settings are not as they should be. The caller has the turn.

        Raises:
            OSError: the kernel does not answer.
        """
        held = self._held
        if wrong := await self._check_tun(tun):
            return Trouble(wrong.detail, wrong.gone)
        if lost := held.find_changed_settings() or await check_routing(held.rules, held.routes, tun.index):
            return Trouble(lost)
        if detour := await find_detour(held.routes, tun.index):
            return Trouble(f"another program leads around the tunnel: {detour}")
        return None

    async def _check_tun(self, tun: Tun) -> TunTrouble | None:
        return await check_tun(tun, uid=self._held.identity.uid)
