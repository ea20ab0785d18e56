"""Supervision of the core: one runs at a time, and its notices become events of the state machine."""

import hashlib
import logging
from collections.abc import Callable, Collection
from pathlib import Path

from psiphon_vpn.config import Settings
from psiphon_vpn.core import events as notices
from psiphon_vpn.core.process import CoreError, CorePlan, CoreProcess
from psiphon_vpn.core.sealing import Sealing
from psiphon_vpn.core.settings import render_core_config
from psiphon_vpn.linux.clocks import ServerClock, read_wall
from psiphon_vpn.network.uplink import Uplink
from psiphon_vpn.network_managers import find_portal
from psiphon_vpn.service.causes import CauseFinder, explain_failed_start, find_cause
from psiphon_vpn.service.events import CoreExited, CoreFault, CoreRegion, CoreStartFailed, CoreTunnels, Event
from psiphon_vpn.service.ports import is_free

log = logging.getLogger(__name__)


class CoreSupervisor:
    """Starts and ends the core, and reads its notices.

    Args:
        data_dir: the core's own directory.
        post: takes the events.
        close_now: closes the lease, if there is one.
        on_notice: called for every notice of the core.
    """

    def __init__(
        self,
        *,
        data_dir: Path,
        post: Callable[[Event], None],
        close_now: Callable[[], None],
        on_notice: Callable[[], None],
    ) -> None:
        self._data_dir = data_dir
        self._post = post
        self._close_now = close_now
        self._on_word = on_notice
        self._core: CoreProcess | None = None
        self._causes = CauseFinder("")
        self._server_clock: ServerClock | None = None
        self.proxy = True
        """Whether the last core was started with its SOCKS proxy."""

    @property
    def running(self) -> bool:
        """Whether there is a core that the service has not ended."""
        return self._core is not None

    @property
    def pid(self) -> int | None:
        """Process id of the core, while it runs."""
        return self._core.pid if self._core else None

    @property
    def clock_skew(self) -> float | None:
        """Seconds that this machine's clock is ahead of the last server's; None before the first server's time."""
        return self._server_clock.measure_skew() if self._server_clock is not None else None

    async def stop(self, *, graceful: bool) -> None:
        """End the core, if there is one, and wait for it."""
        core, self._core = self._core, None
        if core is not None:
            await core.stop(graceful=graceful)

    async def start(self, number: int, *, uplink: Uplink, settings: Settings, proxy: bool, sealing: Sealing) -> bool:
        """Start a core in place of the one that runs. An event reports a failure.

        Args:
            number: of the core, for its events.
            uplink: interface that it is bound to.
            settings: the user's configuration.
            proxy: with its SOCKS proxy, if the port is free.
            sealing: the sealed copy of its program.

        Returns:
            Whether it was started.
        """
        await self.stop(graceful=False)
        self.proxy = proxy and is_free(settings.socks_port)
        # Only of the first IP version: IPv6 prefixes come and go on the same network.
        network = hashlib.sha256(repr(uplink.paths[0]).encode()).hexdigest()[:16]
        plan = CorePlan(
            data_dir=self._data_dir,
            config=render_core_config(
                settings, data_dir=self._data_dir, network_id=f"WIRED-{network}", proxy=self.proxy
            ),
            uplink=uplink.name,
            dns_servers=settings.bootstrap_dns,
        )
        self._causes = CauseFinder(settings.egress_region, target=bool(settings.core_advanced.get("TargetServerEntry")))
        core = self._core = CoreProcess(
            on_event=lambda notice: self._hear(number, notice),
            on_exit=lambda code: self._post(CoreExited(number, f"code {code}" if code >= 0 else f"signal {-code}")),
        )
        try:
            await core.start(plan, sealing)
        except CoreError as error:
            self._post(CoreStartFailed(number, str(error), explain_failed_start(error)))
            return False
        return True

    def _hear(self, number: int, notice: notices.CoreEvent) -> None:
        self._on_word()
        if self._causes.hear(notice):
            self._post(CoreFault(number, self._causes.fault))
        match notice:
            case notices.Tunnels(count):
                if count < 1:
                    self._close_now()
                self._post(CoreTunnels(number, count))
            case notices.ConnectedServerRegion(region):
                self._post(CoreRegion(number, region))
            case notices.ServerTimestamp():
                self._server_clock = ServerClock(notice.timestamp)
            case notices.DatastoreReset():
                log.warning("the core could not open its data store and begins with a new one")
            case notices.DatastoreFailed():
                log.warning("the core's data store failed; the next core begins with a new one")
            case _:
                log.debug("core: %s", type(notice).__name__)

    def find_cause(self, number: int, *, uplink: Uplink | None, conflicts: Collection[str]) -> None:
        """Find out, without sending anything, why the core gets no tunnel.

        Args:
            number: of the core.
            uplink: interface that it is bound to.
            conflicts: interfaces on a network with the tunnel's own addresses.
        """
        cause = find_cause(
            now=read_wall(),
            skew=self.clock_skew,
            portal=uplink is not None and find_portal(uplink.index),
            ipv4=uplink is None or uplink.ipv4,
            taken=uplink is not None and uplink.name in conflicts,
        )
        self._post(CoreFault(number, cause))
