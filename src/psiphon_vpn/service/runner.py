# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Handles one event after the other: asks the state machine, and carries out its effects."""

import asyncio
import contextlib
import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import assert_never

from psiphon_vpn.core.datastore import set_data_aside
from psiphon_vpn.core.image import CoreSource
from psiphon_vpn.core.sealing import Sealing
from psiphon_vpn.linux.clocks import Moment
from psiphon_vpn.linux.core_sockets import read_last_heard
from psiphon_vpn.linux.lock import EnforcementError, LedAround, Lock
from psiphon_vpn.linux.tun import Tun, TunError, TunReplaced, TunSetDown
from psiphon_vpn.policy.derive import Network, Situation, WithoutTun, build_situation, derive
from psiphon_vpn.policy.model import Identity, Policy, State
from psiphon_vpn.policy.values import ControlGroup
from psiphon_vpn.servers.handing import Handing
from psiphon_vpn.service import effects as do
from psiphon_vpn.service.core_supervision import CoreSupervisor
from psiphon_vpn.service.events import (
    AmendmentRefused,
    EnforcementFailed,
    Event,
    PartFailed,
    Timer,
    TimerFired,
    TunBroken,
)
from psiphon_vpn.service.hint_keeper import HintKeeper
from psiphon_vpn.service.intent import store_intent
from psiphon_vpn.service.listing import Listing
from psiphon_vpn.service.mailbox import Mailbox
from psiphon_vpn.service.memory import end_without_memory
from psiphon_vpn.service.model import Model
from psiphon_vpn.service.opening import Opening
from psiphon_vpn.service.parts import ONLY_LOGGED, Part
from psiphon_vpn.service.reasons import explain
from psiphon_vpn.service.rescue import Lists, Rescue, Way
from psiphon_vpn.service.state_machine import step
from psiphon_vpn.service.timers import NextTry, Timers
from psiphon_vpn.tasks import Supervisor, describe, describe_kind, run_alongside, was_cancelled

log = logging.getLogger(__name__)

EFFECT_SECONDS = 90.0
"""Longer than any effect takes on a working machine: every program that an effect runs has its own time limit."""


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """Values that do not change while the daemon runs."""

    identity: Identity
    core: CoreSource
    state_dir: Path
    lists: Lists
    control_group: ControlGroup | None = None
    handing: Handing | None = None


class Runner:
    """The only place where the model changes.

    Args:
        on_change: called after every event that changed the model.
        has_slept: whether the machine slept since the last call; it also starts what has to follow a sleep.
        on_renewal: called after each renewal of the lease. Must not fail.
    """

    def __init__(
        self,
        *,
        surroundings: Surroundings,
        lock: Lock,
        model: Model,
        on_change: Callable[[], None],
        has_slept: Callable[[], bool] = lambda: False,
        on_renewal: Callable[[], None] = lambda: None,
    ) -> None:
        self.model = model
        self.shown = model
        """The model for the status: open only once the lease is taken, closed as soon as that is decided."""
        self.moved: frozenset[str] = frozenset()
        """Names of wires that moved into another network namespace, which no rule here covers. For people only."""
        self.loaded = asyncio.Event()
        """Set after each load of rules, for the part that retries what the kernel refused of them."""
        self._since = Moment()
        self._around = surroundings
        self._lock = lock
        self._on_change = on_change
        self._on_renewal = on_renewal
        self._events = Mailbox()
        self._sealing: Sealing | None = None
        self._listing: Listing | None = None
        self.tasks = Supervisor(self.lose)
        """Starts everything that runs beside this."""
        self.timers = Timers(self.post, self.tasks.guard)
        """Those of the state machine."""
        self.core = CoreSupervisor(
            data_dir=surroundings.state_dir / "core",
            post=self.post,
            close_now=self.close_now,
            on_notice=functools.partial(self.timers.heard, Timer.QUIET),
            on_channel_lost=lambda: self._opening.doubt_tunnel(lost=True),
        )
        self._opening = Opening(
            lock=lock,
            tasks=self.tasks,
            post=self.post,
            on_change=on_change,
            has_slept=has_slept,
            on_renewal=self._renewed,
            hear=self._hear_far_end,
        )
        self._hints = HintKeeper(state_dir=surroundings.state_dir, hosts=surroundings.lists, tasks=self.tasks)
        self._rescue = Rescue(
            state_dir=surroundings.state_dir, lists=surroundings.lists, tasks=self.tasks, post=self.post
        )
        self._ended = asyncio.Event()
        self._replace_tun = False
        """Set if the next policy needs a new TUN."""

    @property
    def next_try(self) -> NextTry | None:
        """What happens next by itself, and when."""
        return self.timers.find_next()

    @property
    def since(self) -> datetime:
        """When the current state began, UTC."""
        return self._since.tell()

    def correct_since(self) -> None:
        """The wall clock jumped."""
        self._since.correct()
        self.core.correct_since()

    def post(self, event: Event) -> None:
        """Add an event; it is handled in its turn."""
        self._events.put(event)

    def report_change(self) -> None:
        """Something in the status changed outside the model."""
        self._on_change()

    def doubt_tunnel(self) -> None:
        """Ask the tunnel now, if it is open: something may hold its packets back."""
        self._opening.doubt_tunnel()

    def close_now(self) -> None:
        """Close before anything else. The event with the reason follows by `post`."""
        if self._lock.view.leased:
            self._lock.close()

    @property
    def busy(self) -> bool:
        """Whether an event waits or is being handled, so that the kernel may have half of the daemon's change."""
        return self._events.busy

    def _renewed(self) -> None:
        self.timers.heard(Timer.RENEWAL)
        self._on_renewal()

    async def run(self) -> None:
        """Handle events for ever."""
        try:
            while True:
                event = await self._events.take()
                try:
                    await self._handle(event)
                finally:
                    self._events.handled()
        finally:
            self._ended.set()

    async def _hear_far_end(self) -> float | None:
        """Seconds since the kernel last heard of the far end of the core's connections."""
        uplink = self.model.uplink
        if uplink is None:
            return None
        return await asyncio.to_thread(read_last_heard, self._around.identity.uid, uplink.index)

    async def settle(self) -> None:
        """Wait until every event added so far was handled.

        Raises:
            RuntimeError: the event handling has ended, so waiting would never end.
        """
        async with run_alongside(self._events.settle()) as settled, run_alongside(self._ended.wait()) as ended:
            await asyncio.wait({settled, ended}, return_when=asyncio.FIRST_COMPLETED)
        if self._ended.is_set():
            raise RuntimeError("the service no longer handles events")

    async def stop(self) -> None:
        """End the core and what runs beside it. The rules stay."""
        self._lock.close()
        self._opening.cancel()
        self._hints.stop()
        self.timers.cancel()
        await self._rescue.stop()
        await self.core.stop(graceful=True)

    def lose(self, part: str, error: BaseException) -> None:
        """A part failed: close at once, log it, and post an event."""
        if isinstance(error, MemoryError):
            end_without_memory()
        if part not in ONLY_LOGGED:
            self._lock.close()
            self.post(PartFailed(part, describe_kind(error)))
        log.error("a part of the service failed: %s: %s", part, describe(error))

    async def _handle(self, event: Event) -> None:
        if isinstance(event, TimerFired) and not self.timers.take(event):
            return  # void since it was posted
        before = self.model
        self.model, effects = step(before, event)
        if self.model.state is not State.OPEN:
            self.shown = self.model
        if self.model.state is not before.state or self.model.reason is not before.reason:
            log.info(
                "%s -> %s: %s %s: %s",
                before.state,
                self.model.state,
                self.model.reason,
                self.model.detail,
                explain(self.model.reason).sentence,
            )
            if self.model.state is not before.state:
                self._since = Moment()
        part = str(Part.EVENTS)
        try:
            with contextlib.ExitStack() as stack:
                if any(isinstance(effect, do.StartCore) for effect in effects):
                    self._sealing = stack.enter_context(Sealing(self._around.core))
                    self._listing = Listing(self._around.handing, self.model.settings.servers)
                for effect in effects:
                    log.debug("effect: %s", effect)
                    part = f"effect {type(effect).__name__}"
                    async with asyncio.timeout(EFFECT_SECONDS):
                        await self.carry_out(effect)
        except EnforcementError as error:
            self._lock.close()
            self.post(EnforcementFailed(str(error), isinstance(error, LedAround)))
            await self._end_forgotten()
        except TunError as error:
            self._lock.close()
            self.post(TunBroken(str(error), taken=isinstance(error, TunReplaced | TunSetDown)))
            await self._end_forgotten()
        except asyncio.CancelledError as error:
            if was_cancelled():
                raise
            await self._give_up(part, error)
        except Exception as error:  # noqa: BLE001  every failure of an effect is answered
            await self._give_up(part, error)
        self.shown = self.model
        if replace(self.model, unrest=before.unrest, changes=before.changes) != before:
            self._log_what_is_next(before)
            self._on_change()

    async def _end_forgotten(self) -> None:
        """End a core and a rescue that the model no longer has, if the failed effect came before their end."""
        if not self.model.rescuing:
            await self._rescue.stop()
        if not self.model.core_running:
            await self.core.stop(graceful=False)

    async def _give_up(self, part: str, error: BaseException) -> None:
        """An effect failed unexpectedly. Without timers nothing would ever be tried again, so the daemon ends."""
        if part in {f"effect {kind.__name__}" for kind in (do.ArmTimer, do.CancelTimers)}:
            raise error
        self.lose(part, error)
        await self._end_forgotten()

    def _log_what_is_next(self, before: Model) -> None:
        following = self.next_try
        if following is not None and (self.model.reason, self.model.state) != (before.reason, before.state):
            log.info("next: %s, at %s", following.what, following.at.isoformat(timespec="seconds"))

    async def carry_out(self, effect: do.Effect) -> None:
        """Carry out one effect. Raises whatever prevents it."""
        match effect:
            case do.CloseLease():
                self._lock.close()
                self._opening.stop_lease()
                self._hints.stop()
            case do.ApplyPolicy(state):
                await self._apply(state)
                self.loaded.set()
            case do.AmendPolicy(state):
                await self._amend(state)
            case do.StopCore(graceful):
                await self.core.stop(graceful=graceful)
            case do.StartCore(number, proxy):
                await self._start_core(number, proxy=proxy)
            case do.Verify(number):
                self._opening.verify(number)
            case do.OpenTunnel(number):
                probe = self.model.settings.ipv6_probe
                await self._opening.open(number, proxy=self.core.proxy, ipv6_probe=probe)
                socks = self.model.settings.socks_port if self.core.proxy else None
                self._hints.start(self.model.settings.servers, socks)
            case do.ArmTimer(timer, seconds):
                self.timers.arm(timer, seconds)
            case do.CancelTimers():
                self.timers.cancel()
            case do.ReplaceTun():
                self._replace_tun = True
            case do.FindCause(core):
                self.core.find_cause(core, uplink=self.model.uplink, conflicts=self.model.seen.conflicts)
            case do.StartRescue(number):
                self._start_rescue(number)
            case do.StopRescue():
                await self._rescue.stop()
            case do.SetDataAside():
                # In a thread: the data can be large, and the kernel's announcements must not wait.
                await asyncio.to_thread(set_data_aside, self._around.state_dir / "core")
            case do.StoreIntent(intent):
                store_intent(self._around.state_dir / "intent", intent)
            case _ as never:
                assert_never(never)

    def _derive(self, situation: Situation, network: Network) -> Policy:
        around = self._around
        return derive(situation, around.identity, self.model.settings, network, control_group=around.control_group)

    def _policy(self, state: State, tun: Tun | None) -> Policy:
        """The policy of a state; without a TUN there is only one."""
        uplink = self.model.uplink_facts
        situation = WithoutTun() if tun is None else build_situation(state, tun=tun.index, uplink=uplink)
        return self._derive(situation, self.model.seen.network)

    async def _apply(self, state: State) -> None:
        self._opening.stop_lease()
        before = self._lock.view.tun
        replace_tun, self._replace_tun = self._replace_tun, False
        try:
            await self._lock.load(
                functools.partial(self._policy, state), odd_wires=self.model.seen.odd_wires, replace_tun=replace_tun
            )
        except TunError as error:
            if state in {State.LOCKED, State.FAILED}:
                log.error("no TUN: %s", error)
                return
            raise
        if before not in {None, self._lock.view.tun} and self.core.running:
            # The core still holds the old device and would spin on it.
            raise TunReplaced("the TUN was replaced")

    async def _amend(self, state: State) -> None:
        """Only addresses of the links changed: nothing closes. If that fails, the policy is applied again."""
        tun = self._lock.view.tun
        if tun is None or not await self._lock.amend(self._policy(state, tun), odd_wires=self.model.seen.odd_wires):
            self.post(AmendmentRefused())

    def _start_rescue(self, number: int) -> None:
        model = self.model
        assert model.uplink is not None, "the state machine starts no rescue without an uplink"
        way = Way(
            uplink=model.uplink,
            on_link=model.seen.network.on_link,
            profile=model.settings.servers,
            proxy=model.settings.upstream_proxy,
        )
        self._rescue.start(number, way)

    async def _start_core(self, number: int, *, proxy: bool) -> None:
        model = self.model
        assert model.uplink is not None, "the state machine starts no core without an uplink"
        assert self._sealing is not None, "started with the effects of the same event"
        assert self._listing is not None, "likewise"
        started = await self.core.start(
            number,
            uplink=model.uplink,
            settings=model.settings,
            proxy=proxy,
            sealing=self._sealing,
            servers=await self._listing.take(),
        )
        tun = self._lock.view.tun
        if started and tun is not None:
            self._opening.rehearse(self._policy(State.OPEN, tun))
