"""Puts back what others change of the lock: rules, routes, routing rules, the TUN.

At once and blindly first, in the very call that hears of it, with the lease closed; reading back and the state machine
come after that. With a program that goes on it does not race: ever longer pauses, and the machine is locked meanwhile.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

from psiphon_vpn.linux.lock import Lock
from psiphon_vpn.linux.monitor import NetworkChange
from psiphon_vpn.linux.nfnetlink import Generation
from psiphon_vpn.policy import names
from psiphon_vpn.policy.own_tables import Keeper, list_kept
from psiphon_vpn.run import was_started_here
from psiphon_vpn.service.culprit import UNKNOWN, describe_committer, describe_port
from psiphon_vpn.service.events import LockBroken, LockFought, TunBroken, UplinkLost
from psiphon_vpn.service.fight import CALM_SECONDS, Fight
from psiphon_vpn.service.runner import Runner
from psiphon_vpn.tasks import call_later

log = logging.getLogger(__name__)

SETTLE_SECONDS = 0.02
"""Changes that come together are looked at together."""
LONGEST_BLIND_SECONDS = 0.1
"""How long a fight may keep changes of links from being looked at."""
LOOK_SECONDS = 60.0
"""Every program that is called for a look has its own limit of time; a list of the kernel's has not."""
TELL_SECONDS = 0.2
"""How often the state machine is told that a fight goes on."""
KEPT_TABLES = frozenset(table.name for table in list_kept(Keeper.DAEMON))
"""What is put back here. The holder's tables are its own: nobody else can touch them."""


class Healer:
    """Hears of changes, and mends.

    Args:
        look_at_links: reads the links anew and tells the state machine.
    """

    def __init__(self, *, runner: Runner, enforcer: Lock, look_at_links: Callable[[], Awaitable[None]]) -> None:
        self._runner = runner
        self._enforcer = enforcer
        self._look_at_links = look_at_links
        self._network_dirty = asyncio.Event()
        self._rules_dirty = asyncio.Event()
        self._routes_dirty = asyncio.Event()
        self._filters_dirty = asyncio.Event()
        self._touched = False
        """Whether the commit that is being announced touches a table of ours."""
        self._culprit: str | None = None
        """Who touched our tables last."""
        self._route_culprit: str | None = None
        """Who touched our rules or routes last, if that waits for its turn."""
        self._fight = Fight()
        self._filter_fight = Fight()
        """Of traffic control: it closes nothing, and puts back ever more slowly."""
        self._told = 0.0

    # -- what the kernel says ---------------------------------------------------------------------------------------

    def on_commit(self, generation: Generation | None) -> None:
        """Somebody committed to the ruleset, and more than elements of sets; with None, some commits were missed.

        Our own are known by netlink's port id. Process ids are told as the first of all pid namespaces counts them,
        which in a container says nothing.
        """
        if generation is not None:
            self._touched = self._touched or not KEPT_TABLES.isdisjoint(generation.tables)
            if generation.number == 0:
                return  # more of the same commit follows
            touched, self._touched = self._touched, False
            if self._enforcer.is_own_commit(generation.port):
                return
            if touched and not was_started_here(generation.port):
                self._culprit = describe_committer(generation.process, generation.pid, generation.port)
                self._strike(self._culprit)
                if not self._wait() and self._enforcer.put_rules_back_now():
                    self._tell(self._culprit)
                    self._culprit = None
        self._rules_dirty.set()

    def on_network(self, change: NetworkChange | None) -> None:
        """A link, an address, a route, a rule or a filter changed; with None, some changes were missed."""
        if change is not None and change.kind == "traffic":
            self._hear_of_filters(change)
            return
        uplink = self._runner.model.uplink
        tun = self._enforcer.tun
        is_tun = change is not None and tun is not None and change.index == tun.index
        if change is not None and change.lost and uplink is not None and change.index == uplink.index:
            # Closed in the same breath; what to do next is decided on a fresh look.
            self._runner.close_now()
            self._runner.post(UplinkLost())
        if change is None or ((change.kind in {"rule", "route"} or is_tun) and not self._is_harmless(change)):
            self._routes_dirty.set()
        if change is not None:
            self._watch_moves(change)
            if is_tun and change.down and change.name == names.TUN_NAME:
                self._lose_tun(gone=change.gone)
            elif change.ours and not self._enforcer.is_own(change.port) and change.port:
                self._lose_route(change)
        # The TUN and the private table are no part of any uplink: no look at the links for what we do there ourselves.
        if change is None or not (is_tun or change.ours) or self._route_culprit is not None:
            self._network_dirty.set()
        if change is None:
            self._hear_of_filters(None)

    def _hear_of_filters(self, change: NetworkChange | None) -> None:
        if change is not None and change.port and self._enforcer.is_own(change.port):
            return
        self._doubt_tunnel(change)
        if self._enforcer.doubt_filters(change.index if change is not None else None):
            self._filters_dirty.set()

    def _doubt_tunnel(self, change: NetworkChange | None) -> None:
        """What others put before the TUN may keep everything back, or nothing: the tunnel is asked."""
        tun = self._enforcer.tun
        if change is None:
            self._runner.doubt_tunnel()
        elif tun is not None and change.index == tun.index and not self._enforcer.is_own_look(change.port):
            who = describe_port(change.port)
            log.warning("%s changed traffic control at %s: the tunnel is asked", who, names.TUN_NAME)
            self._runner.doubt_tunnel()

    def _watch_moves(self, change: NetworkChange) -> None:
        """A card that moved into another network namespace is out of the lock's reach: say so as long as it is away."""
        moved = self._runner.moved
        if change.moved and change.name in self._runner.model.seen.network.wires:
            self._runner.moved = moved | {change.name}
            log.warning("%s now belongs to another network namespace, which this lock does not cover", change.name)
        elif change.kind == "link" and not change.gone and change.name in moved:
            self._runner.moved = moved - {change.name}

    def _is_harmless(self, change: NetworkChange) -> bool:
        """Whether rules, routes and TUN need no look for it: our own doing, or a core that took or left the TUN."""
        whole = not change.down and not change.misfit and change.name == names.TUN_NAME
        carrier_alone = change.kind == "link" and whole
        return carrier_alone or (change.port != 0 and self._enforcer.is_own(change.port))

    def _lose_tun(self, *, gone: bool) -> None:
        self._strike(UNKNOWN)
        if self._wait():
            return
        # Of a change of links the kernel does not say who made it.
        if self._enforcer.put_network_back():
            self._healed("%s deleted the TUN; it was made again", UNKNOWN)
            self._runner.post(TunBroken("the TUN is gone, or another device has its name", taken=True))
        elif not gone:
            self._healed("%s set the TUN down; it was put back", UNKNOWN)
            self._runner.post(LockBroken("the TUN was set down"))

    def _lose_route(self, change: NetworkChange) -> None:
        # Named now: a moment later the program may have ended.
        self._route_culprit = self._route_culprit or describe_port(change.port)
        self._strike(self._route_culprit)
        if change.removed and not self._wait():
            self._enforcer.put_network_back()

    # -- what is done about it, in its turn -------------------------------------------------------------------------

    async def watch_network(self) -> None:
        """Look at the links after a change of the network, and put back at once what was taken from the routes."""
        while True:
            await self._network_dirty.wait()
            # Links are looked at in a fight over routes too: one that came has to be guarded.
            await asyncio.sleep(max(SETTLE_SECONDS, min(LONGEST_BLIND_SECONDS, self._wait())))
            self._network_dirty.clear()
            async with self._look(self._network_dirty):
                await self._look_at_links()
            self._filters_dirty.set()  # a card may be another one under its name
            if pause := self._wait():
                call_later(pause, self._network_dirty.set)
                continue
            culprit, self._route_culprit = self._route_culprit, None
            if culprit is not None:
                self._enforcer.put_network_back()
                self._tell(culprit, what="the routes of the lock")

    async def watch_routes(self) -> None:
        """Look at rules and routes after a change of them.

        Beside the look at the links: a new uplink must not wait until the routes were looked at for the old one.
        """
        while True:
            await self._routes_dirty.wait()
            await asyncio.sleep(max(SETTLE_SECONDS, self._wait()))
            self._routes_dirty.clear()
            await self._check_routes()

    async def watch_filters(self) -> None:
        """Look at the filters of traffic control after a change of others, and put them back. Nothing is closed."""
        loop = asyncio.get_running_loop()
        while True:
            await self._filters_dirty.wait()
            await asyncio.sleep(self._filter_fight.wait(loop.time()))
            self._filters_dirty.clear()
            async with self._look(self._filters_dirty):
                changed = await self._enforcer.check_filters()
            if changed:
                if not self._filter_fight.strike(loop.time()):
                    log.warning("another program changed traffic control at a card; the filter was put back")
                self._filter_fight.heal(loop.time())
                self._runner.tell()

    @contextlib.asynccontextmanager
    async def _look(self, dirty: asyncio.Event) -> AsyncIterator[None]:
        """A look takes only so long, and one that failed is made up for when its watch begins anew."""
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                yield
        except BaseException:
            dirty.set()
            raise

    async def _check_routes(self) -> None:
        """Look at rules and routes while no change of our own is under way."""
        await self._runner.settle()
        async with self._look(self._routes_dirty):
            wrong = await self._enforcer.check_routes()
        if self._runner.busy:
            # A change of our own came between: what was seen may be half of it.
            self._routes_dirty.set()
        elif wrong is not None:
            self._runner.close_now()
            self._runner.post(TunBroken(wrong.detail, taken=True) if wrong.tun_gone else LockBroken(wrong.detail))

    async def watch_rules(self) -> None:
        """Read back after a change of the ruleset, and put back what was not put back at once."""
        while True:
            await self._await_change()
            if pause := self._wait():
                await asyncio.sleep(pause)
            self._rules_dirty.clear()
            await self._runner.settle()
            culprit, self._culprit = self._culprit, None
            # In a fight everything is put back, also where it was not heard who changed it.
            who = culprit or (UNKNOWN if self._fight.began is not None else None)
            async with self._look(self._rules_dirty):
                put_back = who is not None and await self._enforcer.put_rules_back()
            if put_back:
                self._tell(who or UNKNOWN)
                await self._runner.settle()
            async with self._look(self._rules_dirty):
                wrong = await self._enforcer.check_rules()
            if self._runner.busy:
                self._rules_dirty.set()
            elif wrong is not None:
                self._runner.close_now()
                self._strike(culprit or UNKNOWN)
                self._healed("%s: it is put back", wrong)
                self._runner.post(LockBroken(wrong))
                await self._runner.settle()

    async def _await_change(self) -> None:
        """Wait for the next; and say that a fight is over when none comes."""
        while self._fight.began is not None and not self._rules_dirty.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._rules_dirty.wait(), CALM_SECONDS)
            self._end_fight()
        await self._rules_dirty.wait()

    # -- the fight --------------------------------------------------------------------------------------------------

    def _wait(self) -> float:
        return self._fight.wait(asyncio.get_running_loop().time())

    def _tell(self, culprit: str, what: str = "the lock") -> None:
        """It was put back: say who it was, and have everything verified."""
        self._healed("%s changed %s; it was put back", culprit, what)
        self._runner.post(LockBroken(f"{culprit} changed {what}"))

    def _healed(self, said: str, *who: str) -> None:
        if self._fight.began is None:
            log.warning(said, *who)
        self._fight.heal(asyncio.get_running_loop().time())

    def _strike(self, culprit: str) -> None:
        self._end_fight()
        fought = self._fight.began is not None
        if not self._fight.strike(asyncio.get_running_loop().time()):
            return
        if not fought:
            log.warning("%s keeps changing the lock: put back ever more slowly, and locked until it stops", culprit)
        now = asyncio.get_running_loop().time()
        if not fought or now - self._told >= TELL_SECONDS:
            self._told = now
            self._runner.close_now()
            self._runner.post(LockFought(culprit))

    def _end_fight(self) -> None:
        over = self._fight.settle(asyncio.get_running_loop().time())
        if over is not None:
            log.warning("nobody changes the lock any more: it was put back %d times within %.0f s", *over)
