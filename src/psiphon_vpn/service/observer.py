"""Looks at the network, and tells the state machine what it is now, in one event."""

import asyncio
import contextlib
import logging
from pathlib import Path

from psiphon_vpn.linux.core_sockets import read_core_uses
from psiphon_vpn.linux.features import Features
from psiphon_vpn.linux.links import read_snapshot
from psiphon_vpn.linux.lock import Lock
from psiphon_vpn.linux.nfnetlink import NftSocket
from psiphon_vpn.linux.nftimage import find_owner
from psiphon_vpn.linux.owner_watch import OwnerWatch
from psiphon_vpn.network.bridges import Allowed, Standing, explain_standing, judge_bridges, load_bridges
from psiphon_vpn.network.choice import Use, carries_on
from psiphon_vpn.network.observed import observe
from psiphon_vpn.network.uplink import Snapshot, Uplink, find_leading
from psiphon_vpn.policy.own_tables import BRIDGES
from psiphon_vpn.policy.values import InterfaceName
from psiphon_vpn.service.events import NetworkSeen
from psiphon_vpn.service.parts import Part
from psiphon_vpn.service.runner import Runner

log = logging.getLogger(__name__)

LOOK_AGAIN_SECONDS = (0.02, 0.1, 0.5)
BRIDGE_GUARD_SECONDS = 2.0
"""How often the bridge guard is looked for, should its holder be none that can be followed."""


class Observer:
    """Remembers what looks at the network have to know of earlier ones, and which bridges root allowed.

    Args:
        runner: takes the events.
        enforcer: guards wires whose names stand in no rule by their index.
        netlink: tells whether the bridge guard stands.
        features: what this kernel can.
        uid: the core's.
        bridges: root's list of bridges.
    """

    def __init__(
        self,
        *,
        runner: Runner,
        enforcer: Lock,
        netlink: NftSocket,
        features: Features,
        uid: int,
        bridges: Path,
    ) -> None:
        self._runner = runner
        self._enforcer = enforcer
        self._netlink = netlink
        self._features = features
        self._uid = uid
        self._list = bridges
        self._allowed: tuple[InterfaceName, ...] = ()
        self._bridges_dirty = asyncio.Event()
        """Root's list was read, or the holder of the bridge guard ended."""
        self._holder = OwnerWatch(runner.tasks.guard(Part.BRIDGES, self._bridges_dirty.set))
        self._leading: frozenset[int] = frozenset()
        """Indexes of the interfaces that lead out, or did."""
        self._told: tuple[Allowed, ...] = ()
        """What was said of the bridges last."""
        self._looking = asyncio.Lock()
        """Not only one of us looks, and what was read first is told first."""

    async def look(self) -> None:
        """Read the network, and tell the state machine.

        Raises:
            OSError: it cannot be read.
        """
        async with self._looking:
            snapshot = await self._read()
        self._leading = find_leading(snapshot, self._leading)
        seen = observe(snapshot, leading=self._leading, bridges=self._judge_bridges(snapshot))
        self._tell_of_bridges(seen.bridges)
        self._enforcer.odd_wires = seen.odd_wires  # for filters alone, which open nothing: no rule names these
        # Told even when it is what the model has now: an event that says otherwise may still wait its turn.
        self._runner.post(NetworkSeen(seen, await self._find_uses(seen.uplinks)))

    async def _read(self) -> Snapshot:
        """Read the links; once more where the kernel says that they changed while it listed them."""
        for pause in LOOK_AGAIN_SECONDS:
            try:
                return await read_snapshot()
            except OSError as error:
                log.warning("the links could not be read, once more: %s", error)
                await asyncio.sleep(pause)
        return await read_snapshot()

    async def _find_uses(self, uplinks: tuple[Uplink, ...]) -> frozenset[Use] | None:
        """What the core uses of its uplink, if something of that is gone: else it is not asked.

        Or if a version came: a call that began without a route has a source of some other interface, and would go on.
        """
        footing = self._runner.model.footing
        if footing is None:
            return None
        if any(carries_on(footing, uplink) and footing.versions == uplink.versions for uplink in uplinks):
            return None
        return await asyncio.to_thread(read_core_uses, self._uid, footing.index)

    def close(self) -> None:
        """Follow nobody any more."""
        self._holder.close()

    # -- bridges ----------------------------------------------------------------------------------------------------

    def read_list(self) -> None:
        """Read root's list of bridges anew. What it means is judged in `watch_bridges`."""
        self._allowed = load_bridges(self._list)
        self._bridges_dirty.set()

    async def judge_anew(self) -> None:
        """Where root's list is another one, look at once: closed for it only if what is in force changes."""
        if self._is_judged():
            return
        try:
            await self.look()
        except Exception as error:  # noqa: BLE001  closed, told, and begun anew
            self._runner.lose(Part.LINKS, error)

    async def watch_bridges(self) -> None:
        """Judge them anew when root's list was read, and when their guard came or went.

        The holder's end is told (`OwnerWatch`), so that its guard is not missed until the next look.
        """
        while True:
            with contextlib.suppress(TimeoutError):
                # Where none is allowed nothing can come or go.
                pause = BRIDGE_GUARD_SECONDS if self._allowed or self._told else None
                await asyncio.wait_for(self._bridges_dirty.wait(), pause)
            self._bridges_dirty.clear()
            standings = {item.standing for item in self._told} & {Standing.IN_FORCE, Standing.UNGUARDED}
            guarded = {Standing.IN_FORCE if self._is_guarded() else Standing.UNGUARDED} if standings else set()
            if standings != guarded or not self._is_judged():
                await self.look()

    def _is_judged(self) -> bool:
        return tuple(item.name for item in self._told) == self._allowed

    def _is_guarded(self) -> bool:
        try:
            owner = find_owner(self._netlink, *BRIDGES.address)
        except OSError as error:
            log.warning("whether the bridge guard stands cannot be seen: %s", error)
            return False
        self._holder.follow(owner)
        return owner is not None

    def _judge_bridges(self, snapshot: Snapshot) -> tuple[Allowed, ...]:
        if not self._allowed:
            return ()
        return judge_bridges(
            snapshot,
            self._allowed,
            leading=self._leading,
            guarded=self._is_guarded(),
            supported=self._features.bridge_ports and self._features.owner_flag,
        )

    def _tell_of_bridges(self, bridges: tuple[Allowed, ...]) -> None:
        before = {item.name: item for item in self._told}
        for item in bridges:
            if item != before.get(item.name):
                log.warning("bridge %s: %s", item.name, explain_standing(item)[0])
        self._told = bridges
