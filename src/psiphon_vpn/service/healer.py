# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Puts back what other programs change of the lock: rules, routes, routing rules, the TUN.

First at once and without looking, in the same call that receives the announcement, with the lease closed; reading back
and the state machine come after that. It does not race a program that continues: pauses grow, and the machine is locked
meanwhile.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

from psiphon_vpn.linux.lock import Area, Lock, Restored
from psiphon_vpn.linux.monitor import NetworkChange
from psiphon_vpn.linux.nfnetlink import Generation
from psiphon_vpn.policy import names
from psiphon_vpn.policy.own_tables import Keeper, list_kept
from psiphon_vpn.run import was_started_here
from psiphon_vpn.service.culprit import UNKNOWN, OwnPorts, describe_committer, describe_port
from psiphon_vpn.service.events import LockBroken, LockFought, TunBroken, UplinkLost
from psiphon_vpn.service.fight import CALM_SECONDS, Fight
from psiphon_vpn.service.runner import Runner
from psiphon_vpn.tasks import call_later

log = logging.getLogger(__name__)

SETTLE_SECONDS = 0.02
"""Changes in quick succession are examined together."""
LONGEST_BLIND_SECONDS = 0.1
"""How long a fight, or a network that changes again and again, may delay the look at changed links."""
LOOK_SECONDS = 60.0
"""Every program that a look runs has its own time limit; a listing by the kernel has none."""
FOREIGN_SECONDS = 0.2
"""The least time between two readings that only commits to other programs' own tables ask for.

Such a commit changes nothing of the lock, and a reading takes some 15 ms of processor time."""
REPORT_SECONDS = 0.2
"""How often the state machine receives an event while a fight goes on."""
TUN_REPLACED = TunBroken("the TUN is gone, or another device has its name", taken=True)
KEPT_TABLES = frozenset(table.name for table in list_kept(Keeper.DAEMON))
"""The tables that the healer puts back. Nobody except the holder can touch the holder's tables."""


class Healer:
    """Receives announcements of changes, and repairs.

    Args:
        runner: takes the events.
        lock: the kernel's side.
        own: identifies the daemon's own changes.
        look_at_links: reads the links again and posts what it finds.
    """

    def __init__(
        self, *, runner: Runner, lock: Lock, own: OwnPorts, look_at_links: Callable[[], Awaitable[None]]
    ) -> None:
        self._runner = runner
        self._lock = lock
        self._own = own
        self._look_at_links = look_at_links
        self._network_dirty = asyncio.Event()
        self._rules_dirty = asyncio.Event()
        self._rules_urgent = asyncio.Event()
        """Set too when a commit touched a table of the service, or may have: it is read at once."""
        self._rules_read_at = -FOREIGN_SECONDS
        self._routes_dirty = asyncio.Event()
        self._filters_dirty = asyncio.Event()
        self._filters_changed = False
        """Whether another program changed, or may have changed, traffic control on a card with the service's filter."""
        self._touched = False
        """Whether the commit that is being announced touches a table that is put back."""
        self._near = False
        """Whether it touches any table of the service, or one that is not known."""
        self._named = False
        """Whether the kernel has named any table of it."""
        self._culprit: str | None = None
        """The program that last touched the service's tables."""
        self._route_culprit: str | None = None
        """The program that last touched the service's rules or routes, if that still has to be handled."""
        self._fight = Fight()
        self._filter_fight = Fight()
        """Over traffic control: it closes nothing, and repairs ever more slowly."""
        self._reported = 0.0
        self._tun_waits = False
        """Whether the TUN is to be put back after a fight's pause."""

    # -- announcements of the kernel --------------------------------------------------------------------------------

    def on_commit(self, generation: Generation | None) -> None:
        """Handle a commit to the ruleset that changed more than elements of sets; None: some commits were missed.

        Netlink's port id identifies the daemon's own commits. The announced process id is the one in the first pid
        namespace, which says nothing in a container.
        """
        if generation is not None:
            self._touched = self._touched or not KEPT_TABLES.isdisjoint(generation.tables)
            self._near = self._near or generation.ours
            self._named = self._named or bool(generation.tables)
            if generation.number == 0:
                return  # more of the same commit follows
            touched, near = self._touched, self._near or not self._named
            self._touched = self._near = self._named = False
            if generation.port == self._own.commits:
                return
            if touched and not was_started_here(generation.port):
                self._culprit = describe_committer(generation.process, generation.pid, generation.port)
                self._strike(self._culprit)
                if not self._wait() and self._lock.restore_now(Area.RULES).rules:
                    self._report(self._culprit)
                    self._culprit = None
            if near:
                self._rules_urgent.set()
        else:
            self._named = False
            self._rules_urgent.set()
        self._rules_dirty.set()

    def on_network(self, change: NetworkChange | None) -> None:
        """Handle a changed link, address, route, rule or filter; None: some changes were missed."""
        if change is not None and change.kind == "traffic":
            self._hear_of_filters(change)
            return
        uplink = self._runner.model.uplink
        tun = self._lock.view.tun
        is_tun = change is not None and tun is not None and change.index == tun.index
        if change is not None and change.lost and uplink is not None and change.index == uplink.index:
            # Closed at once; the next steps are decided after a fresh look.
            self._runner.close_now()
            self._runner.post(UplinkLost())
        if change is None or ((change.kind in {"rule", "route"} or is_tun) and not self._is_harmless(change)):
            self._routes_dirty.set()
        if change is not None:
            self._watch_moves(change)
            if is_tun and change.down and change.name == names.TUN_NAME:
                self._lose_tun(gone=change.gone)
            elif change.ours and change.port not in {0, self._own.routes}:
                self._lose_route(change)
        # The TUN and the private table belong to no uplink: the daemon's own changes there need no look at the links.
        if change is None or not (is_tun or change.ours) or self._route_culprit is not None:
            self._network_dirty.set()
        if change is None:
            self._hear_of_filters(None)

    def _hear_of_filters(self, change: NetworkChange | None) -> None:
        if change is not None and change.port == self._own.routes:
            return
        self._doubt_tunnel(change)
        if change is None or change.index in self._lock.view.standings:
            self._filters_changed = True
            self._filters_dirty.set()

    def _doubt_tunnel(self, change: NetworkChange | None) -> None:
        """Another program's traffic control at the TUN may hold back everything, or nothing: ask the tunnel."""
        tun = self._lock.view.tun
        if change is None:
            self._runner.doubt_tunnel()
        elif tun is not None and change.index == tun.index and change.port != self._own.queries:
            who = describe_port(change.port)
            log.warning("%s changed traffic control at %s: the tunnel is asked", who, names.TUN_NAME)
            self._runner.doubt_tunnel()

    def _watch_moves(self, change: NetworkChange) -> None:
        """A card in another network namespace is out of the lock's reach: say so as long as it is away."""
        moved = self._runner.moved
        if change.moved and change.name in self._runner.model.seen.network.wires:
            self._runner.moved = moved | {change.name}
            log.warning("%s now belongs to another network namespace, which this lock does not cover", change.name)
        elif change.kind == "link" and not change.gone and change.name in moved:
            self._runner.moved = moved - {change.name}

    def _is_harmless(self, change: NetworkChange) -> bool:
        """Whether rules, routes and TUN need no check: the daemon did it, or a core took or left the TUN."""
        whole = not change.down and not change.misfit and change.name == names.TUN_NAME
        carrier_alone = change.kind == "link" and whole
        return carrier_alone or change.port == self._own.routes

    def _lose_tun(self, *, gone: bool) -> None:
        self._strike(UNKNOWN)
        if self._wait():
            self._tun_waits = True
            return
        # The kernel does not report who changed a link.
        if self._lock.restore_now(Area.NETWORK).tun:
            self._log_repair("%s deleted the TUN; it was made again", UNKNOWN)
            self._runner.post(TUN_REPLACED)
        elif not gone:
            self._log_repair("%s set the TUN down; it was put back", UNKNOWN)
            self._runner.post(LockBroken("the TUN was set down"))

    def _lose_route(self, change: NetworkChange) -> None:
        # Look the name up now: the program may end soon.
        self._route_culprit = self._route_culprit or describe_port(change.port)
        self._strike(self._route_culprit)
        if change.removed and not self._wait():
            self._lock.restore_now(Area.NETWORK)

    # -- checks and repairs, in their turn --------------------------------------------------------------------------

    async def watch_network(self) -> None:
        """Read the links after a change of the network, and put back missing routes at once."""
        while True:
            await self._network_dirty.wait()
            # Links are read in a fight over routes too: a new one needs a guard.
            longest = LONGEST_BLIND_SECONDS if self._runner.model.settling else self._wait()
            await asyncio.sleep(max(SETTLE_SECONDS, min(LONGEST_BLIND_SECONDS, longest)))
            self._network_dirty.clear()
            async with self._look(self._network_dirty):
                await self._look_at_links()
            self._filters_dirty.set()  # a card may be another one under its name
            if pause := self._wait():
                call_later(pause, self._network_dirty.set)
                continue
            culprit, self._route_culprit = self._route_culprit, None
            if culprit is not None:
                self._lock.restore_now(Area.NETWORK)
                self._report(culprit, what="the routes of the lock")

    async def watch_routes(self) -> None:
        """Check rules and routes after a change of them.

        Runs beside the look at the links: a new uplink must not wait for the check of the old one's routes.
        """
        while True:
            await self._routes_dirty.wait()
            await asyncio.sleep(max(SETTLE_SECONDS, self._wait()))
            self._routes_dirty.clear()
            await self._runner.settle()
            self._put_waiting_tun_back()
            await self._check_routes()

    def _put_waiting_tun_back(self) -> None:
        """Put back after the pause what a fight took away: otherwise a fight that goes on looks as if it were over."""
        if not self._tun_waits:
            return
        self._tun_waits = False
        if self._lock.restore_now(Area.NETWORK).tun:
            self._runner.post(TUN_REPLACED)
        self._fight.heal(asyncio.get_running_loop().time())

    async def watch_filters(self) -> None:
        """Check the filters of traffic control after another program's change, and put them back. Closes nothing."""
        loop = asyncio.get_running_loop()
        while True:
            await self._filters_dirty.wait()
            await asyncio.sleep(self._filter_fight.wait(loop.time()))
            self._filters_dirty.clear()
            changed, self._filters_changed = self._filters_changed, False
            restored = await self._restore(Area.FILTERS, self._filters_dirty, changed=changed)
            if restored.filters:
                if not self._filter_fight.strike(loop.time()):
                    log.warning("another program changed traffic control on a card; the filter was put back")
                self._filter_fight.heal(loop.time())
                self._runner.report_change()

    async def watch_guards(self) -> None:
        """Retry a wire for which the egress guard did not load, ever more slowly. Closes nothing."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._runner.loaded.wait(), self._lock.view.refused_for)
            self._runner.loaded.clear()
            if self._lock.view.refused_for != 0:
                continue
            restored = await self._restore(Area.GUARDS, self._runner.loaded)
            if restored.trouble is not None:
                self._runner.post(LockBroken(restored.trouble.detail))
            elif restored.guards:
                log.info("the egress guard loaded for an interface for which it had not loaded before")
                self._runner.report_change()

    @contextlib.asynccontextmanager
    async def _look(self, dirty: asyncio.Event) -> AsyncIterator[None]:
        """Limit the time of a look, and have a failed one repeated when its watch starts again."""
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                yield
        except BaseException:
            dirty.set()
            raise

    async def _restore(self, area: Area, dirty: asyncio.Event, *, changed: bool = False) -> Restored:
        async with self._look(dirty):
            return await self._lock.restore(area, changed=changed)

    async def _check_routes(self) -> None:
        """Check rules and routes while the daemon itself changes nothing."""
        await self._runner.settle()
        wrong = (await self._restore(Area.NETWORK, self._routes_dirty)).trouble
        if self._runner.busy:
            # The daemon changed something meanwhile: the check may have seen half of it.
            self._routes_dirty.set()
        elif wrong is not None:
            self._runner.close_now()
            self._runner.post(TunBroken(wrong.detail, taken=True) if wrong.tun_gone else LockBroken(wrong.detail))
            if self._fight.began is not None:
                # No policy is loaded in a fight: the next pause is followed by another attempt.
                self._tun_waits = True
                call_later(max(SETTLE_SECONDS, self._wait()), self._routes_dirty.set)

    async def watch_rules(self) -> None:
        """Read back after a change of the ruleset, and put back what was not put back at once."""
        while True:
            await self._await_change()
            if pause := self._wait():
                await asyncio.sleep(pause)
            await self._await_turn()
            self._rules_dirty.clear()
            self._rules_urgent.clear()
            await self._runner.settle()
            culprit, self._culprit = self._culprit, None
            # In a fight everything is put back, even if it is unknown who changed it.
            who = culprit or (UNKNOWN if self._fight.began is not None else None)
            restored = await self._restore(Area.RULES, self._rules_dirty, changed=who is not None)
            if restored.rules:
                self._report(who or UNKNOWN)
                await self._runner.settle()
                restored = await self._restore(Area.RULES, self._rules_dirty)
            if self._runner.busy:
                self._rules_dirty.set()
                continue
            self._rules_read_at = asyncio.get_running_loop().time()
            if (wrong := restored.trouble) is not None:
                self._runner.close_now()
                self._strike(culprit or UNKNOWN)
                self._log_repair("%s: it will be put back", wrong.detail)
                self._runner.post(LockBroken(wrong.detail))
                await self._runner.settle()

    async def _await_turn(self) -> None:
        """Leave some time after the last reading, unless a table of the service may have been touched."""
        left = self._rules_read_at + FOREIGN_SECONDS - asyncio.get_running_loop().time()
        if left > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._rules_urgent.wait(), left)

    async def _await_change(self) -> None:
        """Wait for the next change; end the fight if none comes."""
        while self._fight.began is not None and not self._rules_dirty.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._rules_dirty.wait(), CALM_SECONDS)
            self._end_fight()
        await self._rules_dirty.wait()

    # -- the fight --------------------------------------------------------------------------------------------------

    def _wait(self) -> float:
        return self._fight.wait(asyncio.get_running_loop().time())

    def _report(self, culprit: str, what: str = "the lock") -> None:
        """After a repair: log which program it was, and have everything verified."""
        self._log_repair("%s changed %s; it was put back", culprit, what)
        self._runner.post(LockBroken(f"{culprit} changed {what}"))

    def _log_repair(self, said: str, *who: str) -> None:
        if self._fight.began is None:
            log.warning(said, *who)
        self._fight.heal(asyncio.get_running_loop().time())

    def _strike(self, culprit: str) -> None:
        self._end_fight()
        fought = self._fight.began is not None
        if not self._fight.strike(asyncio.get_running_loop().time()):
            return
        if not fought:
            log.warning("%s keeps changing the lock: locked until it stops, with ever slower repairs", culprit)
        now = asyncio.get_running_loop().time()
        if not fought or now - self._reported >= REPORT_SECONDS:
            self._reported = now
            self._runner.close_now()
            self._runner.post(LockFought(culprit))

    def _end_fight(self) -> None:
        over = self._fight.settle(asyncio.get_running_loop().time())
        if over is not None:
            log.warning("no program changes the lock any more: it was put back %d times within %.0f s", *over)
