"""A fake of the kernel's side, for tests of what stands above it: a lease that runs out, and nothing else.

`load` and reading back themselves are tested on a real kernel alone (tests/integration).
"""

from __future__ import annotations

import asyncio

from psiphon_vpn.linux.ipv6 import Ipv6
from psiphon_vpn.linux.lock import Lock, NoLease, Trouble
from psiphon_vpn.linux.traffic import Standing
from psiphon_vpn.linux.tun import Tun
from psiphon_vpn.policy import names
from psiphon_vpn.policy.model import Policy, State

OWN_PORT = 77
"""By which a change is our own."""


GUARDED_CARD = 3
"""Index of a card that has a filter."""


class FakeLock:
    """All is always well, and what is asked for is done."""

    def __init__(self) -> None:
        self.policy: Policy | None = None
        """What is in force."""
        self.routing_trouble: str | None = None
        self.ipv6 = Ipv6.ON
        self.unguarded: tuple[str, ...] = ()
        self.odd_wires: tuple[str, ...] = ()
        self.filters: tuple[tuple[str, Standing], ...] = ()
        self.tun: Tun | None = None
        self.leased = False
        self.ipv6_open = False
        self._ends = 0.0

    @property
    def ran_out(self) -> bool:
        """Whether its time is over."""
        return self.leased and not self.read_lease()

    def read_lease(self) -> bool:
        """Whether it stands."""
        return asyncio.get_running_loop().time() < self._ends

    def close(self) -> None:
        """The lease goes."""
        self.leased, self._ends = False, 0.0

    async def ensure_tun(self) -> Tun:
        """There is one."""
        self.tun = self.tun or Tun(7)
        return self.tun

    def doubt_tun(self) -> None:
        """There is none."""

    async def apply(self, policy: Policy) -> None:
        """It is in force."""
        self.close()
        self.policy = policy

    async def amend(self, policy: Policy) -> bool:
        """It is in force."""
        self.policy = policy
        return True

    async def rehearse(self, policy: Policy) -> None:
        """Nothing to do."""

    async def verify(self) -> object:
        """All is well."""
        return None

    async def open(self, *, proxy: bool = True) -> None:
        """The lease."""
        assert self.policy is not None
        assert self.policy.state is State.OPEN, "opened under another policy"
        self.leased, self._ends = True, asyncio.get_running_loop().time() + names.LEASE_SECONDS

    async def renew(self) -> None:
        """For longer."""
        if not self.leased:
            raise NoLease("there is no lease to renew")
        if self.ran_out:
            self.close()
            raise NoLease("the lease ran out", expired=True)
        self._ends = asyncio.get_running_loop().time() + names.LEASE_SECONDS

    async def open_ipv6(self) -> None:
        """IPv6 too."""
        self.ipv6_open = True

    def is_own(self, port: int) -> bool:
        """Whether it is that one."""
        return port == OWN_PORT

    def is_own_commit(self, port: int) -> bool:
        """Whether it is that one."""
        return port == OWN_PORT

    async def check_routes(self) -> Trouble | None:
        """All is well."""
        return None

    async def check_rules(self) -> str | None:
        """All is well."""
        return None

    async def check_filters(self) -> bool:
        """All is well."""
        return False

    def doubt_filters(self, index: int | None = None) -> bool:
        """Whether it is somewhere, or at that one card."""
        return index in {None, GUARDED_CARD}

    async def clear_tun(self) -> str | None:
        """Nothing to do."""
        return None

    def is_own_look(self, port: int) -> bool:
        """Whether it is that one."""
        return port == OWN_PORT

    def put_rules_back_now(self) -> bool:
        """Nothing to do."""
        return False

    async def put_rules_back(self) -> bool:
        """Nothing to do."""
        return False

    def put_network_back(self) -> bool:
        """Nothing to do."""
        return False

    def shut_down(self) -> None:
        """Nothing to do."""


_COMPLETE: Lock = FakeLock()
"""mypy compares the two here: a method that is new is new for the fake too."""
