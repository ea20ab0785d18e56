# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A fake of the kernel's side, for tests of the code above it: a lease that runs out, and nothing else.

`load` and `read_back` themselves are tested only on a real kernel (tests/integration).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Literal

from psiphon_vpn.linux.lock import Area, Cover, Lock, LockView, NoLease, Proof, Restored
from psiphon_vpn.linux.traffic import Standing
from psiphon_vpn.linux.tun import Tun
from psiphon_vpn.policy import names
from psiphon_vpn.policy.model import Policy, State
from psiphon_vpn.service.culprit import OwnPorts

OWN_PORT = 77
"""By which a change is our own."""
OWN = OwnPorts(routes=OWN_PORT, commits=OWN_PORT, queries=OWN_PORT)
GUARDED_CARD = 3
"""Index of a card that has a filter."""


class FakeLock:
    """Everything is always right, and every request succeeds."""

    def __init__(self) -> None:
        self.policy: Policy | None = None
        """What is in force."""
        self.tun: Tun | None = None
        self.cover: Cover | None = None
        self._closings = 0
        self._ends = 0.0

    @property
    def leased(self) -> bool:
        """Whether the lease was taken and not given up since then."""
        return self.cover is not None

    @property
    def view(self) -> LockView:
        """The view of what is held."""
        ran_out = self.cover is not None and not self.holds_lease()
        return LockView(tun=self.tun, cover=self.cover, ran_out=ran_out, standings={GUARDED_CARD: Standing()})

    def holds_lease(self) -> bool:
        """Whether the lease still runs, as the kernel would report it."""
        return asyncio.get_running_loop().time() < self._ends

    async def load(
        self, policy_for: Callable[[Tun | None], Policy], *, odd_wires: tuple[str, ...] = (), replace_tun: bool = False
    ) -> None:
        """Put the policy in force."""
        self.close()
        self.tun = self.tun or Tun(7)
        self.policy = policy_for(self.tun)

    async def amend(self, policy: Policy, *, odd_wires: tuple[str, ...] = ()) -> bool:
        """Put the policy in force."""
        self.policy = policy
        return True

    async def rehearse(self, policy: Policy) -> None:
        """Nothing to do."""

    async def read_back(self) -> Proof:
        """Find everything right."""
        made_at = asyncio.get_running_loop().time()
        return Proof(generation=1, closings=self._closings, made_at=made_at, fresh=True)

    async def renew(self, proof: Proof, cover: Cover) -> Proof:
        """Take the lease again, for its whole time."""
        now = asyncio.get_running_loop().time()
        assert self.policy is not None
        assert self.policy.state is State.OPEN, "opened under a policy that does not open"
        if proof.closings != self._closings:
            raise NoLease("it was closed since it was read back")
        if now - proof.made_at > names.LEASE_SECONDS:
            self.close()
            raise NoLease("the lease ran out", expired=True)
        self.cover, self._ends = cover, now + names.LEASE_SECONDS
        return Proof(generation=1, closings=self._closings, made_at=now, fresh=False)

    def close(self) -> None:
        """Give the lease up."""
        self.cover, self._ends = None, 0.0
        self._closings += 1

    def restore_now(self, area: Literal[Area.RULES, Area.NETWORK]) -> Restored:
        """Nothing to do."""
        return Restored()

    async def restore(self, area: Area, *, changed: bool = False) -> Restored:
        """Find everything right."""
        return Restored()


_COMPLETE: Lock = FakeLock()
"""mypy compares the two here: a method that is new is new for the fake too."""
