# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The lock: loads a policy, reads it back, opens on the strength of what was read, closes, and puts back."""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from psiphon_vpn.linux.commits import Commits
from psiphon_vpn.linux.features import Features
from psiphon_vpn.linux.held import Held
from psiphon_vpn.linux.ipv6 import Ipv6
from psiphon_vpn.linux.loading import PolicyLoader
from psiphon_vpn.linux.lock import Area, Cover, EnforcementError, LockView, Proof, Restored
from psiphon_vpn.linux.nfnetlink import GenerationChanged, NftSocket
from psiphon_vpn.linux.reading_back import Reader
from psiphon_vpn.linux.restoring import LockRestorer
from psiphon_vpn.linux.routes import RoutingError
from psiphon_vpn.linux.rtnetlink import RouteSocket
from psiphon_vpn.linux.tun import Tun
from psiphon_vpn.policy.model import Identity, Policy, State


class Enforcer:
    """Implements `lock.Lock`. The caller owns the sockets, and closes them.

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
        commits: Commits | None = None,
    ) -> None:
        self._held = Held(identity=identity, netlink=netlink, routes=routes, features=features, commits=commits)
        self._loader = PolicyLoader(self._held)
        self._reader = Reader(self._held)
        self._restorer = LockRestorer(self._held, self._reader, self._loader)

    @property
    def view(self) -> LockView:
        """What is held now, as one value."""
        return self._held.view

    async def load(
        self, policy_for: Callable[[Tun | None], Policy], *, odd_wires: tuple[str, ...] = (), replace_tun: bool = False
    ) -> None:
        """Close, and put a policy into force."""
        await self._loader.load(policy_for, odd_wires=odd_wires, replace_tun=replace_tun)

    async def amend(self, policy: Policy, *, odd_wires: tuple[str, ...] = ()) -> bool:
        """Put a policy into force that differs in single rules; the lease stays."""
        return await self._loader.amend(policy, odd_wires=odd_wires)

    async def rehearse(self, policy: Policy) -> None:
        """Learn what a policy that comes soon will be compared with."""
        await self._loader.rehearse(policy)

    async def read_back(self) -> Proof:
        """Read everything back; close if something is not as it should be."""
        try:
            return await self._reader.read_back()
        except EnforcementError:
            self.close()
            raise

    async def renew(self, proof: Proof, cover: Cover) -> Proof:
        """Take or renew the lease."""
        try:
            return await self._renew(proof, cover)
        except EnforcementError:
            self.close()
            raise
        except (RoutingError, GenerationChanged, OSError) as error:
            self.close()
            raise EnforcementError(str(error) or "the ruleset keeps changing") from error

    async def _renew(self, proof: Proof, cover: Cover) -> Proof:
        held = self._held
        held.lease.check(proof)
        self._need_open_policy()
        if changed := held.find_changed_settings():  # the kernel does not announce these
            raise EnforcementError(changed)
        cover = replace(cover, ipv6=cover.ipv6 and held.ipv6 is Ipv6.ON)
        if cover.ipv6 and not held.view.ipv6_open:
            await self._loader.open_ipv6()
        try:
            return held.lease.renew(proof, cover)
        except GenerationChanged:
            proof = await self._reader.read_back()
            self._need_open_policy()
            return held.lease.renew(proof, cover)

    def _need_open_policy(self) -> None:
        if self._held.policy is None or self._held.policy.state is not State.OPEN:
            raise EnforcementError("the policy in force does not open")

    def close(self) -> None:
        """Close at once."""
        self._held.lease.close()

    def restore_now(self, area: Literal[Area.RULES, Area.NETWORK]) -> Restored:
        """Close, and put back at once, without reading anything."""
        return self._restorer.restore_now(area)

    async def restore(self, area: Area, *, changed: bool = False) -> Restored:
        """Put back in turn, and check."""
        return await self._restorer.restore(area, changed=changed)
