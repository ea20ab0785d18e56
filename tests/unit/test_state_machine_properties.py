# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The state machine under random sequences of every event there is, stale ones included."""

from __future__ import annotations

import typing

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from tests.unit.state_machine_watch import NEIGHBOURS, UPLINK_A, UPLINK_B, Watch, configure, see

from psiphon_vpn.config import Settings
from psiphon_vpn.network.uplink import Uplink
from psiphon_vpn.policy.model import State
from psiphon_vpn.policy.onlink import NOTHING, OnLink
from psiphon_vpn.service import events as ev
from psiphon_vpn.service.effects import StartCore
from psiphon_vpn.service.events import Event, Intent, Timer
from psiphon_vpn.service.model import Model
from psiphon_vpn.service.parts import Part
from psiphon_vpn.service.reasons import Reason

FAULTS = [reason for reason in Reason if reason is not Reason.FIGHT]
"""Of a core: none has anything to do with a fight."""
OFFSETS = st.sampled_from([0, 0, 0, -1, -2, 1])
"""How far a number that an event carries is from the one that is current."""

_Told = ev.UserStart | ev.UserStop | ev.UserRestart | ev.AmendmentRefused | ev.UplinkLost


class AnyEvents(RuleBasedStateMachine):
    """Every event, at any time, with current and stale numbers. `Watch` checks each step."""

    def __init__(self) -> None:
        super().__init__()
        self.watch = Watch()

    def tell(self, event: Event) -> None:
        self.watch.tell(event)

    @initialize(
        intent=st.sampled_from(Intent), head_start=st.sampled_from(["", "", "to_connecting", "to_verifying", "to_open"])
    )
    def begin(self, intent: Intent, head_start: str) -> None:
        self.watch = Watch(Model(intent=intent))
        if head_start:
            getattr(self.watch, head_start)()

    @rule(kind=st.sampled_from([ev.UserStart, ev.UserStop, ev.UserRestart, ev.AmendmentRefused, ev.UplinkLost]))
    def user_or_links(self, kind: type[_Told]) -> None:
        self.tell(kind())

    @rule(kind=st.sampled_from([ev.UserStart, ev.UserRestart]), port=st.sampled_from([2000, 2001]))
    def begin_as_configured(self, kind: type[ev.UserStart | ev.UserRestart], port: int) -> None:
        self.tell(kind(Settings(socks_port=port)))

    @rule()
    def sleep_coming(self) -> None:
        self.tell(ev.SleepComing())
        assert self.watch.model.state in {State.LOCKED, State.FAILED}
        assert self.watch.running is None

    @rule()
    def woke(self) -> None:
        core = self.watch.running
        self.tell(ev.Woke())
        assert self.watch.model.state is not State.OPEN, "a check from before a sleep proves nothing now"
        assert self.watch.running is None or self.watch.running != core, "a core outlived a sleep"

    @rule(timeout=st.sampled_from([0, 1, 300]), named=st.sampled_from(["", "", "eth1"]))
    def settings_good(self, timeout: int, named: str) -> None:
        self.tell(configure(timeout, list_rescue=timeout != 1))
        self.tell(configure(timeout, named, list_rescue=timeout != 1))

    @rule(
        uplinks=st.sampled_from([(UPLINK_A,), (UPLINK_A,), (UPLINK_B,), (UPLINK_A, UPLINK_B), ()]),
        wires=st.sampled_from(["eth0 eth1", "eth0 eth1", "eth0 eth1 eth7"]),
        on_link=st.sampled_from([NOTHING, NOTHING, NEIGHBOURS]),
    )
    def network_seen(self, uplinks: tuple[Uplink, ...], wires: str, on_link: OnLink) -> None:
        self.tell(see(*uplinks, wires=wires, on_link=on_link))
        model = self.watch.model
        assert model.uplink is None or model.uplink in model.choices
        assert model.uplink is not None or model.uplink_at_start is None

    @rule(offset=OFFSETS, count=st.sampled_from([0, 1, 1, 2, -1]))
    def core_tunnels(self, offset: int, count: int) -> None:
        self.tell(ev.CoreTunnels(self.watch.model.core + offset, count))

    @rule(offset=OFFSETS)
    def verified(self, offset: int) -> None:
        self.tell(ev.Verified(self.watch.model.verification + offset))

    @rule(offset=OFFSETS)
    def verification_failed(self, offset: int) -> None:
        self.tell_failure(ev.VerificationFailed(self.watch.model.verification + offset, "no answer"))

    @rule(offset=OFFSETS, kind=st.sampled_from([ev.CoreExited, ev.CoreStartFailed]))
    def core_gone(self, offset: int, kind: type[ev.CoreExited | ev.CoreStartFailed]) -> None:
        event = kind(self.watch.model.core + offset, "code 0")
        if offset == 0 and self.watch.running is not None:
            self.tell_failure(event)
        else:
            before = self.watch.model
            self.tell(event)
            assert self.watch.model == before, "the end of another core changes nothing"

    @rule(offset=OFFSETS, reason=st.sampled_from([None, *FAULTS]))
    def core_fault(self, offset: int, reason: Reason | None) -> None:
        self.tell(ev.CoreFault(self.watch.model.core + offset, reason))

    @rule(offset=OFFSETS)
    def core_region(self, offset: int) -> None:
        self.tell(ev.CoreRegion(self.watch.model.core + offset, "CA"))

    @rule(
        kind=st.sampled_from(
            [ev.LockBroken, ev.LockFought, ev.TunBroken, ev.EnforcementFailed, ev.TunnelSilent, ev.SettingsBad]
        ),
    )
    def failure(
        self,
        kind: type[
            ev.LockBroken | ev.LockFought | ev.TunBroken | ev.EnforcementFailed | ev.TunnelSilent | ev.SettingsBad
        ],
    ) -> None:
        self.tell_failure(kind("reason"))

    @rule(expired=st.booleans())
    def lease_lost(self, expired: bool) -> None:
        self.tell_failure(ev.LeaseLost(expired=expired))

    @rule(part=st.sampled_from([*Part, "effect ApplyPolicy"]))
    def part_failed(self, part: str) -> None:
        self.tell_failure(ev.PartFailed(part, "OSError"))

    @rule(offset=OFFSETS, found=st.booleans())
    def rescue_ended(self, offset: int, found: bool) -> None:
        self.tell(ev.RescueEnded(self.watch.model.rescue + offset, found))

    @rule(timer=st.sampled_from(Timer))
    def timer_fired(self, timer: Timer) -> None:
        if timer in self.watch.timers:  # no other timer's event is ever read: tests/unit/test_runner.py
            self.tell(ev.TimerFired(timer))

    @precondition(lambda self: self.watch.model.state is State.VERIFYING)
    @rule()
    def right_answer(self) -> None:
        self.tell(ev.Verified(self.watch.model.verification))
        self.watch.expect(State.OPEN)

    def tell_failure(self, event: Event) -> None:
        """Require that a failure of the present ends closed."""
        stale = isinstance(event, ev.VerificationFailed) and event.number != self.watch.model.verification
        was_open = self.watch.model.state is State.OPEN
        self.tell(event)
        # A late result of a verification does not concern what is open now.
        assert (
            self.watch.model.state is not State.OPEN or stale or (isinstance(event, ev.VerificationFailed) and was_open)
        )
        if isinstance(event, ev.LockFought):
            assert self.watch.model.state in {State.LOCKED, State.FAILED}, "locked while somebody fights over it"
            assert self.watch.running is None
        assert self.watch.model.reason is not Reason.FIGHT or self.watch.model.state is State.LOCKED
        if isinstance(event, ev.SettingsBad):
            self.watch.expect(State.FAILED)
            assert not any(isinstance(effect, StartCore) for effect in self.watch.effects)

    def teardown(self) -> None:
        """From any state it can get to OPEN, and only in the right order."""
        self.watch.tell(configure(300))
        self.watch.tell(see(UPLINK_B))
        self.watch.tell(ev.Woke())
        self.watch.tell(ev.UserRestart())
        self.watch.expect(State.CONNECTING)
        self.watch.tell(ev.CoreTunnels(self.watch.model.core, 1))
        self.watch.tell(ev.Verified(self.watch.model.verification - 1))
        self.watch.expect(State.VERIFYING)
        self.watch.tell(ev.Verified(self.watch.model.verification))
        self.watch.expect(State.OPEN)


def run(machine: type[AnyEvents], *, examples: int, steps: int) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=True,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.defect(1, 16)
@pytest.mark.requirement("R1", "R2", "R3", "R6", "R24", "B2")
def test_no_sequence_of_events_opens_without_a_fresh_verification() -> None:
    run(AnyEvents, examples=250, steps=40)


@pytest.mark.requirement("R1", "R3")
def test_long_sequences_of_events_keep_every_promise_too() -> None:
    run(AnyEvents, examples=15, steps=400)


def test_the_random_events_are_all_the_events_there_are() -> None:
    seen: set[type] = set()

    class Counting(AnyEvents):
        def tell(self, event: Event) -> None:
            seen.add(type(event))
            super().tell(event)

    run(Counting, examples=60, steps=60)
    assert seen == set(typing.get_args(Event))
