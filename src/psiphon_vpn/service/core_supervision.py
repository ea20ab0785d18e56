# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Supervision of the core: one runs at a time, and its notices become events of the state machine."""

import hashlib
import logging
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

from psiphon_vpn.config import Settings
from psiphon_vpn.core import events as notices
from psiphon_vpn.core.process import CoreError, CorePlan, CoreProcess
from psiphon_vpn.core.sealing import Sealing
from psiphon_vpn.core.settings import render_core_config
from psiphon_vpn.linux.clocks import ServerClock, read_running, read_wall
from psiphon_vpn.linux.device_types import read_device_types
from psiphon_vpn.network.medium import find_medium
from psiphon_vpn.network.uplink import Uplink
from psiphon_vpn.network_managers import find_portal
from psiphon_vpn.servers.handing import Handed
from psiphon_vpn.servers.keys import render_options
from psiphon_vpn.service.causes import Attempt, CauseFinder, explain_failed_start, look_around, read_attempt
from psiphon_vpn.service.connection import Connection
from psiphon_vpn.service.events import CoreExited, CoreFault, CoreRegion, CoreStartFailed, CoreTunnels, Event
from psiphon_vpn.service.ports import is_free

log = logging.getLogger(__name__)

_UNKNOWN: Final = Handed()
"""No profile, and no server known from the start."""


class CoreSupervisor:
    """Starts and ends the core, and reads its notices.

    Args:
        data_dir: the core's own directory.
        post: takes the events.
        close_now: closes the lease, if there is one.
        on_notice: called for every notice of the core.
        on_channel_lost: called when the core says that its tunnel carries no packets; it may still call that a tunnel.
    """

    def __init__(
        self,
        *,
        data_dir: Path,
        post: Callable[[Event], None],
        close_now: Callable[[], None],
        on_notice: Callable[[], None],
        on_channel_lost: Callable[[], None] = lambda: None,
    ) -> None:
        self._data_dir = data_dir
        self._post = post
        self._close_now = close_now
        self._on_word = on_notice
        self._on_channel_lost = on_channel_lost
        self._core: CoreProcess | None = None
        self._causes = CauseFinder(Attempt())
        self._trying_since = read_running()
        self._connection = Connection()
        self._servers = _UNKNOWN
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

    def describe_servers(self) -> dict[str, object]:
        """What the running core said of its servers, for the status."""
        heard = self._causes.heard
        return {
            "known": heard.known,
            "tried": len(heard.tried),
            "protocols": sorted(heard.protocols),
            "list_flaw": self._servers.flaw,
        }

    @property
    def regions(self) -> tuple[str, ...]:
        """Countries where the core has servers that it may use, as far as it said."""
        return self._causes.heard.regions

    def describe_connection(self) -> dict[str, object] | None:
        """The tunnel, for the status; None without one."""
        return self._connection.describe() if self._core is not None else None

    def correct_since(self) -> None:
        """The wall clock jumped."""
        self._connection.correct_since()

    async def stop(self, *, graceful: bool) -> None:
        """End the core, if there is one, and wait for it."""
        core, self._core = self._core, None
        if core is not None:
            await core.stop(graceful=graceful)

    async def start(
        self,
        number: int,
        *,
        uplink: Uplink,
        settings: Settings,
        proxy: bool,
        sealing: Sealing,
        servers: Handed = _UNKNOWN,
    ) -> bool:
        """Start a core in place of the one that runs. An event reports a failure.

        Args:
            number: of the core, for its events.
            uplink: interface that it is bound to.
            settings: the user's configuration.
            proxy: with its SOCKS proxy, if the port is free.
            sealing: the sealed copy of its program.
            servers: the servers that it knows from the start, and whose they are.

        Returns:
            Whether it was started.
        """
        await self.stop(graceful=False)
        self._servers = servers
        self.proxy = proxy and is_free(settings.socks_port)
        medium = find_medium(uplink, read_device_types(uplink.stack))
        # Only of the first IP version: IPv6 prefixes come and go on the same network.
        network = hashlib.sha256(repr(uplink.paths[0]).encode()).hexdigest()[:16]
        config = render_core_config(
            settings,
            data_dir=self._data_dir,
            network_id=f"{medium}-{network}",
            proxy=self.proxy,
            network={} if servers.profile is None else render_options(servers.profile),
        )
        plan = CorePlan(
            data_dir=self._data_dir,
            config=config,
            uplink=uplink.name,
            dns_servers=settings.bootstrap_dns,
            server_list=servers.image,
        )
        self._causes = CauseFinder(read_attempt(config, lookup=bool(settings.bootstrap_dns), flaw=servers.flaw))
        self._connection = Connection()
        self._trying_since = read_running()
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
        self._connection.hear(notice)
        if self._causes.hear(notice):
            self._report_fault(number)
        match notice:
            case notices.Tunnels(count):
                self._trying_since = read_running()
                if count < 1:
                    self._close_now()
                self._post(CoreTunnels(number, count))
            case notices.PacketTunnelFailed():
                log.warning("the core says that its tunnel carries no packets")
                self._on_channel_lost()
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
        around = look_around(
            now=read_wall(),
            skew=self.clock_skew,
            portal=uplink is not None and find_portal(uplink.index),
            ipv4=uplink is None or uplink.ipv4,
            taken=uplink is not None and uplink.name in conflicts,
            of_program=uplink is not None and uplink.of_program,
        )
        if self._causes.look(around, read_running() - self._trying_since):
            self._report_fault(number)

    def _report_fault(self, number: int) -> None:
        fault = self._causes.fault
        self._post(CoreFault(number, None) if fault is None else CoreFault(number, fault.reason, fault.detail))
