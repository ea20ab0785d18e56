# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A watcher of the state machine: keeps its own account of the effects, and fails when they break a promise."""

from __future__ import annotations

import ipaddress
import itertools
from dataclasses import dataclass, field
from typing import Any

from psiphon_vpn.config import Settings
from psiphon_vpn.network.choice import SocketUse
from psiphon_vpn.network.observed import ObservedNetwork
from psiphon_vpn.network.uplink import Path, Uplink
from psiphon_vpn.policy.derive import Network, UplinkFacts
from psiphon_vpn.policy.model import State
from psiphon_vpn.policy.onlink import find_on_link
from psiphon_vpn.policy.routing import IPV4
from psiphon_vpn.policy.values import InterfaceName, parse_names
from psiphon_vpn.service import events as ev
from psiphon_vpn.service.effects import (
    AmendPolicy,
    ApplyPolicy,
    ArmTimer,
    CancelTimers,
    CloseLease,
    Effect,
    FindCause,
    OpenTunnel,
    ReplaceTun,
    SetDataAside,
    StartCore,
    StartRescue,
    StopCore,
    StopRescue,
    StoreIntent,
    Verify,
)
from psiphon_vpn.service.events import Event, Intent, Timer
from psiphon_vpn.service.model import LEGAL_MOVES, Model
from psiphon_vpn.service.state_machine import step

_PATH_A = Path(version=IPV4, gateways=("192.0.2.1",), places=("192.0.2.10",))
_PATH_B = Path(version=IPV4, gateways=("192.0.2.129",), places=("192.0.2.138",))
UPLINK_A = Uplink(index=2, name=InterfaceName("eth0"), paths=(_PATH_A,))
UPLINK_B = Uplink(index=3, name=InterfaceName("eth1"), paths=(_PATH_B,))
NEIGHBOURS = find_on_link([ipaddress.ip_interface("192.0.2.10/25")], [])
CHECKED = {State.VERIFYING, State.OPEN}
CONNECTED = {State.CONNECTING, State.VERIFYING, State.OPEN}


def see(
    *uplinks: Uplink, uses: frozenset[SocketUse] | None = None, wires: str = "eth0 eth1", **more: Any
) -> ev.NetworkSeen:
    """A snapshot of the network: the ways out, the best first, and the wires."""
    network = Network(wires=parse_names(*wires.split()), **more)
    return ev.NetworkSeen(ObservedNetwork(network=network, uplinks=uplinks), uses)


def configure(establish_timeout: int, uplink: str = "", *, list_rescue: bool = True) -> ev.SettingsGood:
    """A valid configuration."""
    return ev.SettingsGood(Settings(establish_timeout=establish_timeout, uplink=uplink, list_rescue=list_rescue))


@dataclass
class Watch:
    """The state machine, and the state of the system if its effects were carried out."""

    model: Model = field(default_factory=Model)
    running: int | None = None
    lease: bool = False
    fresh: int | None = None
    """Number of the Verify effect that an opening may rest on: issued since VERIFYING and OPEN were last left."""
    policy: State | None = None
    rules: tuple[Network, UplinkFacts | None] | None = None
    """What the policy in force was derived from; None where it is not known what the kernel holds."""
    timers: dict[Timer, float] = field(default_factory=dict)
    stored: list[Intent] = field(default_factory=list)
    effects: tuple[Effect, ...] = ()
    rescue: int | None = None
    """Number of the rescue that runs."""
    opened: int = 0
    set_aside: int = 0
    """Since it was last open."""

    def tell(self, event: Event) -> tuple[Effect, ...]:
        """Send an event, check its consequences, and return the effects."""
        before = self.model
        if isinstance(event, ev.TimerFired):
            self.timers.pop(event.timer, None)
        if isinstance(event, ev.CoreExited | ev.CoreStartFailed) and event.core == self.running:
            self.running = None
        if isinstance(event, ev.RescueEnded) and event.number == self.rescue:
            self.rescue = None
        self.model, self.effects = step(before, event)
        self._look_at_the_move(before, event)
        for effect in self.effects:
            self._carry_out(effect, event)
        self._look_at_what_stands(event)
        return self.effects

    def _look_at_the_move(self, before: Model, event: Event) -> None:
        applied = (effect.state for effect in self.effects if isinstance(effect, ApplyPolicy))
        path = [before.state, *applied, self.model.state]
        for here, there in itertools.pairwise(path):
            assert there is here or there in LEGAL_MOVES[here], path
        if before.state is State.OPEN and self.model.state is not State.OPEN:
            assert isinstance(self.effects[0], CloseLease), "something happens before the lease is closed"
        if before.state is not State.OPEN and self.model.state is State.OPEN:
            assert isinstance(event, ev.Verified)
            assert isinstance(self.effects[-1], OpenTunnel), "nothing may follow the opening"
        opens = [effect for effect in self.effects if isinstance(effect, OpenTunnel)]
        assert len(opens) == (self.model.state is State.OPEN and before.state is not State.OPEN)

    def _carry_out(self, effect: Effect, event: Event) -> None:
        match effect:
            case CloseLease():
                self.lease = False
            case ApplyPolicy(state):
                # Loading the rules of CONNECTING again changes nothing for the rescue.
                assert self.rescue is None or state is State.CONNECTING, "a rescue goes on under another state's rules"
                assert not self.lease, "rules are changed under an open tunnel"
                self.policy = state
                self.rules = (self.model.seen.network, self.model.uplink_facts)
            case AmendPolicy(state):
                assert self.policy in {None, state} or state is State.VERIFYING
                self.rules = (self.model.seen.network, self.model.uplink_facts)
            case StopCore():
                assert self.running is not None, "there is no core to stop"
                self.running = None
            case StartCore(number):
                assert self.running is None, "a second core"
                assert number == self.model.core
                assert not self.lease
                assert self.policy is State.CONNECTING, "the core starts under another policy than CONNECTING"
                assert self.model.settings_good
                assert self.model.intent is Intent.CONNECTED
                assert self.model.uplink is not None
                self.running = number
            case StartRescue(number):
                assert self.rescue is None, "a second rescue"
                assert self.model.state is State.CONNECTING
                assert self.policy in {None, State.CONNECTING}
                assert self.running is not None
                assert self.model.settings.list_rescue, "the user does not want it"
                assert self.model.intent is Intent.CONNECTED
                assert number == self.model.rescue
                self.rescue = number
            case StopRescue():
                assert self.rescue is not None, "there is no rescue to end"
                self.rescue = None
            case Verify(number):
                assert self.fresh is None or number > self.fresh, "a number is used twice"
                self.fresh = number
            case OpenTunnel(number):
                assert isinstance(event, ev.Verified)
                assert event.number == number == self.fresh, "opened without a fresh verification"
                assert self.policy is State.OPEN
                self.fresh = None
                self.lease = True
                self.opened += 1
                self.set_aside = 0
            case CancelTimers():
                self.timers.clear()
            case ArmTimer(timer, seconds):
                assert seconds > 0
                self.timers[timer] = seconds
            case StoreIntent(intent):
                self.stored.append(intent)
            case ReplaceTun():
                assert self.running is None, "a core would go on with a TUN that is gone"
            case FindCause(core):
                assert core == self.running, "the cause of another core's trouble"
            case SetDataAside():
                assert self.running is None, "moved from under a running core"
                self.set_aside += 1
                assert self.set_aside == 1, "set aside in a loop"

    def _look_at_what_stands(self, event: Event) -> None:
        model = self.model
        if model.state not in CHECKED:
            self.fresh = None
        assert self.lease == (model.state is State.OPEN)
        assert model.rescuing == (self.rescue is not None)
        assert self.rescue is None or model.state is State.CONNECTING, "a rescue in another state"
        assert self.rescue is None or model.core_running
        assert model.core_running == (self.running is not None)
        # OPEN and VERIFYING rest on a core; LOCKED and FAILED have none.
        assert (self.running is not None) == (model.state in CONNECTED)
        if isinstance(event, ev.EnforcementFailed):
            self.policy = State.LOCKED  # then the kernel has the table that drops everything: linux/tables.py
            self.rules = None
        now = (model.seen.network, model.uplink_facts)
        assert self.rules in {None, now}, "the rules name another network than the one that was seen last"
        if self.policy is not None:
            # CONNECTING and VERIFYING have the same rules: tests/unit/test_policy.py.
            allowed = {State.VERIFYING, State.CONNECTING} if model.state is State.VERIFYING else {model.state}
            assert self.policy in allowed, "the policy in force is another state's"
        if model.state in CONNECTED:
            assert model.intent is Intent.CONNECTED
            assert model.settings_good
            assert model.uplink is not None
        if model.asleep:
            assert model.state in {State.LOCKED, State.FAILED}, "something is under way while the machine sleeps"
        self._look_for_dead_ends()

    def _look_for_dead_ends(self) -> None:
        """Require that something is under way that can connect, or that only the user can."""
        model = self.model
        if model.state is State.LOCKED and self.could_connect():
            assert Timer.RETRY in self.timers or (model.asleep and Timer.WAKE in self.timers), "locked for ever"
        if model.state is State.CONNECTING:
            assert Timer.QUIET in self.timers, "a core that hangs hangs for ever"
            assert Timer.RESCUE in self.timers, "nothing checks any more whether a newer list may help"
        if model.state is State.CONNECTING and model.settings.establish_timeout:
            assert Timer.ESTABLISH in self.timers, "connecting for ever"
        if (model.unrest or model.changes) and model.state in {State.OPEN, State.LOCKED} and not model.asleep:
            waits = {Timer.CALM, Timer.RETRY} & set(self.timers)
            assert waits or not self.could_connect(), "never calm again"
        if model.state is State.VERIFYING:
            assert self.fresh == model.verification, "verifying for ever"
            assert Timer.VERIFICATION in self.timers, "a verification that never ends is never given up"
        if model.state is State.OPEN:
            assert Timer.RENEWAL in self.timers, "nothing notices that the lease is not renewed"

    def could_connect(self) -> bool:
        """Whether everything that a connection needs is there: uplink, settings and intent."""
        return self.model.uplink is not None and self.model.settings_good and self.model.intent is Intent.CONNECTED

    def expect(self, state: State) -> None:
        """Fail unless the machine is in this state."""
        assert self.model.state is state, (self.model.state, self.model.reason)

    # -- the way to each state ------------------------------------------------------------------------------------

    def to_connecting(self) -> Watch:
        """Give it settings, an uplink and the start command."""
        for event in (configure(300), see(UPLINK_A), ev.UserStart()):
            self.tell(event)
        assert self.model.state is State.CONNECTING
        return self

    def to_verifying(self) -> Watch:
        """Continue until the core has a tunnel."""
        self.to_connecting().tell(ev.CoreTunnels(self.model.core, 1))
        assert self.model.state is State.VERIFYING
        return self

    def to_open(self) -> Watch:
        """Continue until the verification has succeeded."""
        self.to_verifying().tell(ev.Verified(self.model.verification))
        assert self.model.state is State.OPEN
        return self


def kinds(effects: tuple[Effect, ...]) -> list[str]:
    """The effects' names, in order."""
    return [type(effect).__name__ for effect in effects]
