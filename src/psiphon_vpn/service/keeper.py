"""Keeps the tunnel open: renews the lease, and beside it asks the tunnel whether it lives, and whether it has IPv6."""

import asyncio
from collections.abc import Callable

from psiphon_vpn.linux.enforcer import EnforcementError, Enforcer
from psiphon_vpn.linux.resolver_probe import ask
from psiphon_vpn.policy import names
from psiphon_vpn.service.events import Event, LockBroken, TunnelSilent
from psiphon_vpn.service.liveness import Liveness, read_traffic

VERIFY_SECONDS = 4.0
IPV6_PROBE_SECONDS = 3.0


async def ask_resolver(seconds: float) -> bool:
    """Whether the resolver in the tunnel answers: the tunnel carries packets both ways."""
    return await ask(names.RESOLVER_IPV4, source=names.TUN_IPV4, device=names.TUN_NAME, seconds=seconds)


class LeaseKeeper:
    """Runs while open; cancelling `run` stops all of it. What it finds wrong it closes for, and posts.

    Args:
        enforcer: holds the lease.
        post: takes the events.
        on_change: called when IPv6 is open too.
        has_slept: whether the machine slept since this was last asked; who asks is answered once.
        ipv6_probe: name servers that tell of IPv6.
    """

    def __init__(
        self,
        *,
        enforcer: Enforcer,
        post: Callable[[Event], None],
        on_change: Callable[[], None],
        has_slept: Callable[[], bool],
        ipv6_probe: tuple[str, ...],
    ) -> None:
        self._enforcer = enforcer
        self._post = post
        self._on_change = on_change
        self._has_slept = has_slept
        self._ipv6_probe = ipv6_probe
        self._question: asyncio.Task[bool] | None = None

    async def run(self) -> None:
        """Renew the lease until something is wrong."""
        loop = asyncio.get_running_loop()
        liveness = Liveness(loop.time())
        ipv6 = asyncio.create_task(self._find_ipv6())
        due = loop.time() + names.LEASE_RENEW_SECONDS
        try:
            while True:
                await self._pause(due - loop.time())
                if self._question is not None and self._question.done():
                    if not self._question.result():
                        self._enforcer.close()
                        self._post(TunnelSilent("the resolver in the tunnel stopped answering"))
                        return
                    self._question = None
                    liveness.asked(loop.time())
                if loop.time() < due:
                    continue
                due = loop.time() + names.LEASE_RENEW_SECONDS
                if self._has_slept():
                    return
                await self._enforcer.renew()
                if liveness.look(read_traffic(), loop.time()) and self._question is None:
                    # Beside the renewals, which must not wait for an answer.
                    self._question = asyncio.create_task(ask_resolver(VERIFY_SECONDS))
        except EnforcementError as error:
            self._post(LockBroken(str(error)))
        finally:
            ipv6.cancel()
            if self._question is not None:
                self._question.cancel()

    async def _pause(self, seconds: float) -> None:
        """Wait until it is time, or a question has its answer."""
        if self._question is None:
            await asyncio.sleep(seconds)
        else:
            await asyncio.wait({self._question}, timeout=max(0.0, seconds))

    async def _find_ipv6(self) -> None:
        """A server without IPv6 swallows it silently, so applications get it only once it was seen to work."""
        for pause in (0.0, 2.0, 10.0, 60.0, 600.0):
            await asyncio.sleep(pause)
            for server in self._ipv6_probe:
                if await ask(server, source=names.TUN_IPV6, device=names.TUN_NAME, seconds=IPV6_PROBE_SECONDS):
                    try:
                        await self._enforcer.open_ipv6()
                    except EnforcementError as error:
                        self._post(LockBroken(str(error)))
                    self._on_change()
                    return
