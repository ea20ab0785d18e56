# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Keeps the tunnel open: renews the lease, and checks meanwhile whether the tunnel answers and carries IPv6."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from psiphon_vpn.linux.lock import Area, Cover, EnforcementError, Lock, NoLease, Proof
from psiphon_vpn.linux.resolver_probe import ask
from psiphon_vpn.policy import names
from psiphon_vpn.service.events import Event, LeaseLost, LockBroken, TunnelSilent
from psiphon_vpn.service.liveness import LOOK_SECONDS, Doubt, Liveness, read_traffic
from psiphon_vpn.service.patience import LONGEST_SECONDS, LOST_SECONDS, Patience, Silence
from psiphon_vpn.tasks import run_alongside

VERIFY_SECONDS = 4.0
IPV6_PROBE_SECONDS = 3.0
QUESTION_PAUSE_SECONDS = 1.0
"""The shortest time between an answer of the tunnel and the next question."""

log = logging.getLogger(__name__)


async def ask_resolver(seconds: float) -> bool:
    """Whether the resolver in the tunnel answers, so that the tunnel carries packets both ways."""
    return await ask(names.RESOLVER_IPV4, source=names.TUN_IPV4, device=names.TUN_NAME, seconds=seconds)


def _explain(error: EnforcementError) -> Event:
    """The event of a failed renewal: if the lease ran out, no program changed the lock."""
    return LeaseLost(error.expired) if isinstance(error, NoLease) else LockBroken(str(error))


def explain_cleared(kinds: str) -> str:
    """The sentence for another program's traffic control at the TUN, which was removed."""
    return f"another program's traffic control ({kinds}) held back the tunnel's packets, and was removed"


class LeaseKeeper:
    """Runs while open; cancelling `run` stops everything. If something is wrong, it closes and posts an event.

    Args:
        lock: holds the lease.
        proof: the proof for the first renewal of the lease.
        cover: what the lease covers.
        has_ipv6: whether the TUN has IPv6, so that the tunnel can be tried for it.
        post: takes the events.
        on_change: called when IPv6 is open too.
        has_slept: whether the machine slept since the last call; it also starts what has to follow a sleep.
        on_renewal: called after each renewal.
        ipv6_probe: name servers that show, by an answer, that the tunnel carries IPv6.
        patience: what is known of how long an answer takes.
        hear: seconds since the kernel last heard of the far end of the core's connections; None if that is not known.
    """

    def __init__(
        self,
        *,
        lock: Lock,
        proof: Proof,
        cover: Cover,
        has_ipv6: bool,
        post: Callable[[Event], None],
        on_change: Callable[[], None],
        has_slept: Callable[[], bool],
        on_renewal: Callable[[], None],
        ipv6_probe: tuple[str, ...],
        patience: Patience,
        hear: Callable[[], Awaitable[float | None]],
    ) -> None:
        self._lock = lock
        self._proof = proof
        self._cover = cover
        self._has_ipv6 = has_ipv6
        self._post = post
        self._on_change = on_change
        self._has_slept = has_slept
        self._on_renewal = on_renewal
        self._ipv6_probe = ipv6_probe
        self._patience = patience
        self._hear = hear
        self._liveness = Liveness(0.0)
        self._doubtful = asyncio.Event()
        """Set when the tunnel should be asked."""
        self._doubted_again = False
        """Something happened since the last question was sent; its answer may not cover it."""
        self._urgent = False
        """Applications get no answer from the tunnel."""
        self._lost = False
        """The core says that its tunnel carries nothing."""

    def doubt(self, *, lost: bool = False) -> None:
        """Ask the tunnel now: something happened that may hold its packets back.

        Args:
            lost: the core itself says that none pass.
        """
        self._lost = self._lost or lost
        self._doubted_again = True
        self._doubtful.set()

    async def run(self) -> None:
        """Renew the lease until something is wrong, and post that."""
        self._liveness = Liveness(asyncio.get_running_loop().time())
        self._look()  # so that the next look has something to compare with
        try:
            # In parallel, since renewals must not wait for an answer.
            async with run_alongside(self._question_tunnel()) as silent, run_alongside(self._find_ipv6()) as ipv6:
                await self._renew_until(silent, ipv6)
        except EnforcementError as error:
            self._post(_explain(error))

    async def _renew_until(self, silent: asyncio.Task[None], ipv6: asyncio.Task[bool]) -> None:
        loop = asyncio.get_running_loop()
        due = look_at = loop.time() + names.LEASE_RENEW_SECONDS
        while True:
            waited_for: set[asyncio.Task[Any]] = {silent} if ipv6.done() else {silent, ipv6}
            next_at = min(due, look_at)
            await asyncio.wait(waited_for, timeout=max(0.0, next_at - loop.time()), return_when=asyncio.FIRST_COMPLETED)
            ipv6_found = ipv6.done() and ipv6.result() and not self._cover.ipv6
            if silent.done():
                silent.result()
                self._lock.close()
                if taken := (await self._lock.restore(Area.QUEUE)).queue:
                    log.warning("%s", explain_cleared(taken))
                    self._post(LockBroken(explain_cleared(taken)))
                else:
                    self._post(TunnelSilent("the resolver in the tunnel stopped answering"))
                return
            if loop.time() < due and not ipv6_found:
                if loop.time() >= look_at:
                    look_at = self._look() or due
                continue
            due = loop.time() + names.LEASE_RENEW_SECONDS
            if self._has_slept():
                return
            if ipv6_found:
                self._cover = replace(self._cover, ipv6=True)
            self._proof = await self._lock.renew(self._proof, self._cover)
            self._on_renewal()
            if ipv6_found:
                self._on_change()
            look_at = self._look() or due

    def _look(self) -> float | None:
        """Look at the tunnel's traffic. Returns when to look again; None: with the next renewal."""
        now = asyncio.get_running_loop().time()
        doubt = self._liveness.look(read_traffic(), now)
        if doubt is not Doubt.NONE:
            self._urgent = self._urgent or doubt is Doubt.UNANSWERED
            self._doubtful.set()
        return now + LOOK_SECONDS if self._liveness.busy else None

    async def _question_tunnel(self) -> None:
        """Ask the resolver in the tunnel whenever there is doubt; return when it does not answer."""
        loop = asyncio.get_running_loop()
        earliest = loop.time()
        while True:
            await self._doubtful.wait()
            # So that frequent changes by other programs do not cause a flood of questions. The pause is waited for only
            # with a question at its end: nothing wakes for the end of the pause alone.
            if (pause := earliest - loop.time()) > 0:
                await asyncio.sleep(pause)
            self._doubted_again = False
            if not await self._ask():
                return
            self._liveness.asked(loop.time())
            earliest = loop.time() + QUESTION_PAUSE_SECONDS
            if not self._doubted_again:
                self._doubtful.clear()

    async def _ask(self) -> bool:
        """Ask the resolver, and wait until it answers or the tunnel has been silent for too long."""
        loop = asyncio.get_running_loop()
        began, traffic = loop.time(), read_traffic()
        silence = Silence(began, self._patience.find(urgent=self._urgent))
        self._urgent = lost = False
        async with run_alongside(ask_resolver(LONGEST_SECONDS)) as question:
            while not question.done():
                if self._lost and not lost:
                    lost, silence = True, Silence(loop.time(), LOST_SECONDS)
                left = max(0.0, silence.ends_at - loop.time())
                await asyncio.wait({question}, timeout=min(LOOK_SECONDS, left))
                before, traffic = traffic, read_traffic()
                if traffic is not None and before is not None and traffic.received != before.received:
                    silence.carry(loop.time())
                if loop.time() < silence.ends_at or question.done():
                    continue
                if not lost and (ago := await self._hear()) is not None:
                    silence.hear(loop.time() - ago)
                if loop.time() >= silence.ends_at:
                    break
            answered = question.done() and question.result()
        if answered:
            self._lost = False
            self._patience.learn(loop.time() - began)
        return answered

    async def _find_ipv6(self) -> bool:
        """Whether an answer came by IPv6: a server without IPv6 drops it silently."""
        if not self._has_ipv6:
            return False
        for pause in (0.0, 2.0, 10.0, 60.0, 600.0):
            await asyncio.sleep(pause)
            for server in self._ipv6_probe:
                if await ask(server, source=names.TUN_IPV6, device=names.TUN_NAME, seconds=IPV6_PROBE_SECONDS):
                    return True
        return False
