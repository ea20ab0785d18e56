# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads the network, and posts its present state to the state machine in one event."""

import asyncio
import contextlib
import logging
from pathlib import Path

from psiphon_vpn.linux.core_sockets import read_core_uses
from psiphon_vpn.linux.features import Features
from psiphon_vpn.linux.links import read_snapshot
from psiphon_vpn.linux.nfnetlink import NftSocket
from psiphon_vpn.linux.nftimage import find_owner
from psiphon_vpn.linux.owner_watch import OwnerWatch
from psiphon_vpn.network.bridges import AllowedBridge, BridgeStatus, explain_bridge_status, judge_bridges, load_bridges
from psiphon_vpn.network.choice import SocketUse, still_serves
from psiphon_vpn.network.observed import observe
from psiphon_vpn.network.uplink import Snapshot, Uplink, find_outbound
from psiphon_vpn.policy.own_tables import BRIDGES
from psiphon_vpn.policy.values import InterfaceName
from psiphon_vpn.service.events import NetworkSeen
from psiphon_vpn.service.parts import Part
from psiphon_vpn.service.runner import Runner

log = logging.getLogger(__name__)

LOOK_AGAIN_SECONDS = (0.02, 0.1, 0.5)
BRIDGE_GUARD_SECONDS = 2.0
"""How often to look for the bridge guard, if its holder cannot be followed."""


class Observer:
    """Remembers what a look at the network needs from earlier ones, and which bridges root allowed.

    Args:
        runner: takes the events.
        netlink: shows whether the bridge guard stands.
        features: what this kernel supports.
        uid: the core's.
        bridges: root's list of bridges.
    """

    def __init__(
        self,
        *,
        runner: Runner,
        netlink: NftSocket,
        features: Features,
        uid: int,
        bridges: Path,
    ) -> None:
        self._runner = runner
        self._netlink = netlink
        self._features = features
        self._uid = uid
        self._list = bridges
        self._allowed: tuple[InterfaceName, ...] = ()
        self._bridges_dirty = asyncio.Event()
        """Set when root's list was read, or the holder of the bridge guard ended."""
        self._holder = OwnerWatch(runner.tasks.guard(Part.BRIDGES, self._bridges_dirty.set))
        self._outbound: frozenset[int] = frozenset()
        """Indexes of the interfaces that lead out, or did."""
        self._reported: tuple[AllowedBridge, ...] = ()
        """The last report about the bridges."""
        self._looking = asyncio.Lock()
        """Looks may overlap; what was read first is posted first."""

    async def look(self) -> None:
        """Read the network, and post what was found.

        Raises:
            OSError: it cannot be read.
        """
        async with self._looking:
            snapshot = await self._read()
        self._outbound = find_outbound(snapshot, self._outbound)
        seen = observe(snapshot, outbound=self._outbound, bridges=self._judge_bridges(snapshot))
        self._tell_of_bridges(seen.bridges)
        # Posted even if it equals the model: an event with something else may still wait its turn.
        self._runner.post(NetworkSeen(seen, await self._find_uses(seen.uplinks)))

    async def _read(self) -> Snapshot:
        """Read the links; again if the kernel says that they changed during the listing."""
        for pause in LOOK_AGAIN_SECONDS:
            try:
                return await read_snapshot()
            except OSError as error:
                log.warning("the links could not be read, trying again: %s", error)
                await asyncio.sleep(pause)
        return await read_snapshot()

    async def _find_uses(self, uplinks: tuple[Uplink, ...]) -> frozenset[SocketUse] | None:
        """What the core uses of its uplink, if something of the uplink is gone; otherwise None, without asking.

        Also if an IP version was added: a connection that began without a route has another interface's source, and
        would continue.
        """
        uplink_at_start = self._runner.model.uplink_at_start
        if uplink_at_start is None:
            return None
        if any(
            still_serves(uplink_at_start, uplink) and uplink_at_start.versions == uplink.versions for uplink in uplinks
        ):
            return None
        return await asyncio.to_thread(read_core_uses, self._uid, uplink_at_start.index)

    def close(self) -> None:
        """Stop following the holder."""
        self._holder.close()

    # -- bridges ----------------------------------------------------------------------------------------------------

    def read_list(self) -> None:
        """Read root's list of bridges again. `watch_bridges` judges it."""
        self._allowed = load_bridges(self._list)
        self._bridges_dirty.set()

    async def judge_again(self) -> None:
        """Look at once if root's list changed. This closes only if the rules in force change."""
        if self._is_judged():
            return
        try:
            await self.look()
        except Exception as error:  # noqa: BLE001  closed, reported, and started again
            self._runner.lose(Part.LINKS, error)

    async def watch_bridges(self) -> None:
        """Judge the bridges again when root's list was read, and when their guard came or went.

        `OwnerWatch` reports the holder's end at once, so that this need not wait for the next look.
        """
        while True:
            with contextlib.suppress(TimeoutError):
                # If no bridge is allowed, nothing can come or go.
                pause = BRIDGE_GUARD_SECONDS if self._allowed or self._reported else None
                await asyncio.wait_for(self._bridges_dirty.wait(), pause)
            self._bridges_dirty.clear()
            statuses = {item.status for item in self._reported} & {BridgeStatus.IN_FORCE, BridgeStatus.UNGUARDED}
            guarded = {BridgeStatus.IN_FORCE if self._is_guarded() else BridgeStatus.UNGUARDED} if statuses else set()
            if statuses != guarded or not self._is_judged():
                await self.look()

    def _is_judged(self) -> bool:
        return tuple(item.name for item in self._reported) == self._allowed

    def _is_guarded(self) -> bool:
        try:
            owner = find_owner(self._netlink, *BRIDGES.address)
        except OSError as error:
            log.warning("cannot read whether the bridge guard stands: %s", error)
            return False
        self._holder.follow(owner)
        return owner is not None

    def _judge_bridges(self, snapshot: Snapshot) -> tuple[AllowedBridge, ...]:
        if not self._allowed:
            return ()
        return judge_bridges(
            snapshot,
            self._allowed,
            outbound=self._outbound,
            guarded=self._is_guarded(),
            supported=self._features.bridge_ports and self._features.owner_flag,
        )

    def _tell_of_bridges(self, bridges: tuple[AllowedBridge, ...]) -> None:
        before = {item.name: item for item in self._reported}
        for item in bridges:
            if item != before.get(item.name):
                log.warning("bridge %s: %s", item.name, explain_bridge_status(item)[0])
        self._reported = bridges
