# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The verification, and the opening after it: a lease needs a verification in which the tunnel answered."""

import asyncio
from collections.abc import Awaitable, Callable

from psiphon_vpn.linux.ipv6 import Ipv6
from psiphon_vpn.linux.lock import Area, Cover, EnforcementError, Lock
from psiphon_vpn.policy.model import Policy
from psiphon_vpn.service.events import Event, VerificationFailed, Verified
from psiphon_vpn.service.keeper import VERIFY_SECONDS, LeaseKeeper, ask_resolver, explain_cleared
from psiphon_vpn.service.parts import ONLY_LOGGED, Part
from psiphon_vpn.service.patience import Patience
from psiphon_vpn.tasks import Supervisor, run_alongside


class PartDownError(Exception):
    """A part that should always run does not run: nothing is opened without it."""


class Opening:
    """Verifies, opens, and keeps the lease.

    Args:
        lock: the kernel's side.
        tasks: starts what runs beside this.
        post: takes the events.
        on_change: called when IPv6 is open too.
        has_slept: whether the machine slept since the last call.
        on_renewal: called after each renewal of the lease.
        hear: seconds since the kernel last heard of the far end of the core's connections; None if that is not known.
    """

    def __init__(
        self,
        *,
        lock: Lock,
        tasks: Supervisor,
        post: Callable[[Event], None],
        on_change: Callable[[], None],
        has_slept: Callable[[], bool],
        on_renewal: Callable[[], None],
        hear: Callable[[], Awaitable[float | None]],
    ) -> None:
        self._lock = lock
        self._tasks = tasks
        self._post = post
        self._on_change = on_change
        self._has_slept = has_slept
        self._on_renewal = on_renewal
        self._hear = hear
        self._verification: asyncio.Task[None] | None = None
        self._lease: asyncio.Task[None] | None = None
        self._keeper: LeaseKeeper | None = None
        self._rehearsal: asyncio.Task[None] | None = None
        self._answered = 0
        """Number of the last verification in which an answer came through the tunnel."""
        self._took = 0.0
        """Seconds until that answer."""

    def rehearse(self, policy: Policy) -> None:
        """Prepare while the core connects, which takes longer, what the opening would otherwise wait for."""
        self._tasks.cancel(self._rehearsal)
        self._rehearsal = self._tasks.start(Part.REHEARSAL, self._lock.rehearse(policy))

    def verify(self, number: int) -> None:
        """Begin a verification. An event reports its outcome."""
        self._tasks.cancel(self._verification)
        self._verification = self._tasks.start(Part.VERIFICATION, self._verify(number))

    async def _verify(self, number: int) -> None:
        """Check rules, routes and TUN, and meanwhile the tunnel itself; the opening checks the former once more."""
        if down := self._tasks.down - ONLY_LOGGED:
            raise PartDownError(", ".join(sorted(down)))
        try:
            async with run_alongside(self._ask()) as question:
                await self._lock.read_back()
                took = await question
        except EnforcementError as error:
            self._post(VerificationFailed(number, str(error)))
            return
        if took is not None:
            self._answered, self._took = number, took
            self._post(Verified(number))
        else:
            taken = (await self._lock.restore(Area.QUEUE)).queue
            detail = explain_cleared(taken) if taken else "the resolver in the tunnel does not answer"
            self._post(VerificationFailed(number, detail))

    async def _ask(self) -> float | None:
        """Seconds until the resolver in the tunnel answered; None if it did not."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        return loop.time() - began if await ask_resolver(VERIFY_SECONDS) else None

    async def open(self, number: int, *, proxy: bool, ipv6_probe: tuple[str, ...]) -> None:
        """Take the lease, and keep it.

        Args:
            number: of the verification that allows it.
            proxy: the core has its SOCKS proxy.
            ipv6_probe: name servers that show, by an answer, that the tunnel carries IPv6.

        Raises:
            EnforcementError: not everything is as it should be.
        """
        if number != self._answered:
            raise EnforcementError("no answer came through the tunnel in this verification")
        # Check again: time has passed, and the opening's rules were loaded.
        cover = Cover(proxy=proxy)
        proof = await self._lock.renew(await self._lock.read_back(), cover)
        keeper = LeaseKeeper(
            lock=self._lock,
            proof=proof,
            cover=cover,
            has_ipv6=self._lock.view.ipv6 is Ipv6.ON,
            post=self._post,
            on_change=self._on_change,
            has_slept=self._has_slept,
            on_renewal=self._on_renewal,
            ipv6_probe=ipv6_probe,
            patience=Patience(self._took),
            hear=self._hear,
        )
        self._keeper = keeper
        self._lease = self._tasks.start(Part.LEASE, keeper.run())

    def doubt_tunnel(self, *, lost: bool = False) -> None:
        """Ask the tunnel now, if it is open. Otherwise it is asked before opening. lost: as for `LeaseKeeper.doubt`."""
        if self._keeper is not None:
            self._keeper.doubt(lost=lost)

    def stop_lease(self) -> None:
        """Stop renewing."""
        self._tasks.cancel(self._lease)
        self._lease = self._keeper = None

    def cancel(self) -> None:
        """Cancel everything."""
        for task in (self._verification, self._lease, self._rehearsal):
            self._tasks.cancel(task)
