# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The state machine, move by move. Random sequences are in test_state_machine_properties.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.unit.state_machine_watch import NEIGHBOURS, UPLINK_A, UPLINK_B, Watch, configure, kinds, see

from psiphon_vpn.config import Settings
from psiphon_vpn.policy.model import State
from psiphon_vpn.service import events as ev
from psiphon_vpn.service.effects import (
    AmendPolicy,
    ApplyPolicy,
    ArmTimer,
    CloseLease,
    OpenTunnel,
    ReplaceTun,
    StartCore,
    StopCore,
    StoreIntent,
    Verify,
)
from psiphon_vpn.service.events import Event, Intent, Timer
from psiphon_vpn.service.model import (
    CALM_SECONDS,
    CHANGES_AT_ONCE,
    FIRST_RETRY_SECONDS,
    HELD_SECONDS,
    LAST_RETRY_SECONDS,
    LAST_UNREST_SECONDS,
    LEGAL_MOVES,
    RENEWAL_SECONDS,
    SETTLE_SECONDS,
    TROUBLES_AT_ONCE,
    VERIFICATIONS_PER_CORE,
    WAKE_SECONDS,
    Model,
)
from psiphon_vpn.service.plan import IllegalMove, Plan
from psiphon_vpn.service.reasons import Reason

FAILURES_OF_NOW = [
    ev.TunBroken("gone"),
    ev.EnforcementFailed("refused"),
    ev.LockBroken("flushed"),
    ev.LockFought("ufw (pid 7)"),
    ev.TunnelSilent("silent"),
    ev.LeaseLost(expired=True),
    ev.LeaseLost(expired=False),
    ev.PartFailed("lease renewal", "OSError"),
    ev.PartFailed("watch of links", "OSError"),
    ev.SettingsBad("line 3"),
    ev.CoreExited(1, "code 0"),
    ev.CoreTunnels(1, 0),
    see(),
    see(UPLINK_B),
    see(UPLINK_A, wires="eth0 eth1 eth7"),
    ev.UplinkLost(),
    ev.AmendmentRefused(),
    ev.UserStop(),
    ev.UserRestart(),
    configure(300),
    ev.SleepComing(),
    ev.Woke(),
]


def name_event(event: Event) -> str:
    return type(event).__name__


def retry_delay(watch: Watch) -> float:
    (effect,) = (effect for effect in watch.effects if isinstance(effect, ArmTimer))
    assert effect.timer is Timer.RETRY
    return effect.seconds


def fail_to_connect(watch: Watch) -> float:
    """The core ends while connecting; returns the delay until the next attempt, and begins it."""
    watch.tell(ev.CoreExited(watch.model.core, "code 1"))
    delay = retry_delay(watch)
    watch.tell(ev.TimerFired(Timer.RETRY))
    watch.expect(State.CONNECTING)
    return delay


def test_it_begins_locked_and_waits_for_an_uplink() -> None:
    watch = Watch()
    watch.tell(configure(300))
    assert (watch.model.state, watch.model.reason) == (State.LOCKED, Reason.NO_UPLINK)
    assert ApplyPolicy(State.LOCKED) in watch.effects


@pytest.mark.requirement("R2", "R6")
def test_an_uplink_starts_the_core_under_the_connecting_policy_with_the_lease_closed() -> None:
    watch = Watch()
    watch.tell(configure(300))
    watch.tell(see(UPLINK_A))
    watch.expect(State.CONNECTING)
    assert kinds(watch.effects) == ["CloseLease", "CancelTimers", "ApplyPolicy", "StartCore", *["ArmTimer"] * 5]
    assert ArmTimer(Timer.ESTABLISH, 300.0) in watch.effects


def test_an_establish_timeout_of_zero_means_no_timer() -> None:
    watch = Watch()
    watch.tell(configure(0))
    watch.tell(see(UPLINK_A))
    assert Timer.ESTABLISH not in watch.timers


@pytest.mark.defect(16)
def test_a_tunnel_is_verified_before_anything_is_opened() -> None:
    watch = Watch().to_connecting()
    watch.tell(ev.CoreTunnels(watch.model.core, 1))
    assert (watch.model.state, watch.model.reason) == (State.VERIFYING, Reason.TUNNEL_UP)
    assert watch.effects[-1] == Verify(watch.model.verification)
    assert "ApplyPolicy" not in kinds(watch.effects)  # the same rules: tests/unit/test_policy.py


def test_a_good_verification_opens_and_the_opening_comes_last() -> None:
    watch = Watch().to_verifying()
    watch.tell(ev.Verified(watch.model.verification))
    assert (watch.model.state, watch.model.reason) == (State.OPEN, Reason.VERIFIED)
    assert watch.effects[-5:] == (
        ApplyPolicy(State.OPEN),
        ArmTimer(Timer.HELD, HELD_SECONDS),
        ArmTimer(Timer.CALM, CALM_SECONDS),
        ArmTimer(Timer.RENEWAL, RENEWAL_SECONDS),
        OpenTunnel(watch.model.verification),
    )


def test_a_good_verification_is_worth_nothing_once_the_core_has_lost_its_tunnel() -> None:
    watch = Watch().to_verifying()
    number = watch.model.verification
    watch.tell(ev.CoreTunnels(watch.model.core, 0))
    watch.tell(ev.Verified(number))
    assert (watch.model.state, watch.effects) == (State.CONNECTING, ())


def test_an_old_verification_does_not_open() -> None:
    watch = Watch().to_open()
    old = watch.model.verification
    watch.tell(ev.AmendmentRefused())
    watch.expect(State.VERIFYING)
    watch.tell(ev.Verified(old))
    assert (watch.model.state, watch.effects) == (State.VERIFYING, ())


@pytest.mark.requirement("R1", "R3", "R6", "B2")
@pytest.mark.parametrize("event", FAILURES_OF_NOW, ids=name_event)
def test_whatever_takes_it_out_of_open_closes_the_lease_first(event: Event) -> None:
    watch = Watch().to_open()
    watch.tell(event)
    assert watch.model.state is not State.OPEN
    assert watch.effects[0] == CloseLease()


@pytest.mark.defect(1)
@pytest.mark.requirement("R1", "R24")
@pytest.mark.parametrize("event", FAILURES_OF_NOW, ids=name_event)
@pytest.mark.parametrize("way", ["to_connecting", "to_verifying", "to_open"])
def test_no_failure_in_any_state_ends_open(event: Event, way: str) -> None:
    watch: Watch = getattr(Watch(), way)()
    watch.tell(event)
    assert watch.model.state is not State.OPEN


def test_a_core_that_ends_while_open_is_started_again_at_once() -> None:
    watch = Watch().to_open()
    watch.tell(ev.CoreExited(watch.model.core, "signal 9"))
    assert (watch.model.state, watch.model.reason) == (State.CONNECTING, Reason.CORE_EXITED)
    assert watch.effects[0] == CloseLease()
    assert StartCore(2) in watch.effects
    assert "StopCore" not in kinds(watch.effects)


def test_a_core_that_ends_before_it_was_of_use_waits_locked_for_its_next_try() -> None:
    watch = Watch().to_connecting()
    watch.tell(ev.CoreExited(watch.model.core, "code 1"))
    assert (watch.model.state, watch.model.reason) == (State.LOCKED, Reason.CORE_EXITED)
    assert retry_delay(watch) == FIRST_RETRY_SECONDS


def test_repeated_failures_wait_twice_as_long_each_time_up_to_a_minute() -> None:
    watch = Watch().to_connecting()
    delays = [fail_to_connect(watch) for _ in range(40)]
    assert delays[:8] == [0.5, 1, 2, 4, 8, 16, 32, LAST_RETRY_SECONDS]
    assert set(delays[7:]) == {60.0}


def test_a_success_makes_the_first_wait_short_again() -> None:
    watch = Watch().to_connecting()
    for _ in range(5):
        fail_to_connect(watch)
    watch.tell(ev.CoreTunnels(watch.model.core, 1))
    watch.tell(ev.Verified(watch.model.verification))
    watch.tell(ev.CoreExited(watch.model.core, "code 1"))
    assert fail_to_connect(watch) == FIRST_RETRY_SECONDS


def test_what_the_core_said_is_wrong_is_the_reason_when_it_ends() -> None:
    watch = Watch().to_connecting()
    watch.tell(ev.CoreFault(watch.model.core, Reason.REGION, "there are servers in DE"))
    watch.tell(ev.CoreExited(watch.model.core, "code 0"))
    assert (watch.model.reason, watch.model.detail) == (Reason.REGION, "there are servers in DE")


def test_a_taken_port_costs_the_proxy_and_not_the_tunnel_and_never_makes_a_tight_loop() -> None:
    watch = Watch().to_connecting()
    first = watch.model.core
    watch.tell(ev.CoreFault(first, Reason.PORT_IN_USE))
    watch.tell(ev.CoreExited(first, "code 0"))
    watch.expect(State.CONNECTING)
    assert StartCore(first + 1, proxy=False) in watch.effects
    # A core without a proxy that reports a taken port all the same is treated like any core that ends.
    watch.tell(ev.CoreFault(watch.model.core, Reason.PORT_IN_USE))
    watch.tell(ev.CoreExited(watch.model.core, "code 0"))
    assert (watch.model.state, watch.model.reason) == (State.LOCKED, Reason.PORT_IN_USE)
    watch.tell(ev.TimerFired(Timer.RETRY))
    assert StartCore(first + 2) in watch.effects, "the next one is to have its proxy again"


def break_store(watch: Watch) -> None:
    """Have a core fail to open its data store, and start the next one."""
    watch.tell(ev.CoreFault(watch.model.core, Reason.DATASTORE_BROKEN))
    watch.tell(ev.CoreExited(watch.model.core, "code 1"))
    assert (watch.model.state, watch.model.reason) == (State.LOCKED, Reason.DATASTORE_BROKEN)
    assert Timer.RETRY in watch.timers


def test_a_broken_data_store_is_set_aside_once_until_the_tunnel_was_open_again() -> None:
    watch = Watch().to_connecting()
    break_store(watch)
    assert kinds(watch.effects)[-1] == "SetDataAside"
    for _ in range(5):
        watch.tell(ev.TimerFired(Timer.RETRY))
        break_store(watch)
        assert "SetDataAside" not in kinds(watch.effects)
    watch.tell(ev.TimerFired(Timer.RETRY))
    watch.tell(ev.CoreTunnels(watch.model.core, 1))
    watch.tell(ev.Verified(watch.model.verification))
    watch.expect(State.OPEN)
    watch.tell(ev.UserRestart())
    break_store(watch)
    assert kinds(watch.effects)[-1] == "SetDataAside"


@pytest.mark.parametrize("reason", [Reason.DATASTORE, Reason.DISK])
def test_a_data_store_that_is_held_or_has_no_room_is_never_set_aside(reason: Reason) -> None:
    watch = Watch().to_connecting()
    watch.tell(ev.CoreFault(watch.model.core, reason))
    watch.tell(ev.CoreExited(watch.model.core, "code 1"))
    assert watch.model.reason is reason
    assert "SetDataAside" not in kinds(watch.effects)


def test_a_fault_of_the_last_core_is_not_the_reason_of_the_next_ones_end() -> None:
    watch = Watch().to_connecting()
    watch.tell(ev.CoreFault(watch.model.core, Reason.UPSTREAM_PROXY))
    fail_to_connect(watch)
    watch.tell(ev.CoreExited(watch.model.core, "code 1"))
    assert watch.model.reason is Reason.CORE_EXITED


def test_exit_code_zero_is_no_success() -> None:
    """psiphon-tunnel-core ends with 0 when it gives up or its port is taken (psiphon-core, answer 5)."""
    watch = Watch().to_connecting()
    watch.tell(ev.CoreExited(watch.model.core, "code 0"))
    watch.expect(State.LOCKED)
    assert Timer.RETRY in watch.timers


def test_a_core_that_cannot_be_started_is_tried_again_later() -> None:
    watch = Watch().to_connecting()
    watch.tell(ev.CoreStartFailed(watch.model.core, "missing"))
    assert (watch.model.state, watch.model.reason) == (State.LOCKED, Reason.CORE_MISSING)
    assert "StopCore" not in kinds(watch.effects)
    assert retry_delay(watch) == FIRST_RETRY_SECONDS


@pytest.mark.parametrize("way", ["to_verifying", "to_open"])
def test_no_tunnels_leads_back_to_connecting_with_the_same_core(way: str) -> None:
    watch: Watch = getattr(Watch(), way)()
    watch.tell(ev.CoreTunnels(watch.model.core, 0))
    assert (watch.model.state, watch.model.reason) == (State.CONNECTING, Reason.TUNNEL_LOST)
    assert not {"StartCore", "StopCore"} & set(kinds(watch.effects))
    assert Timer.ESTABLISH in watch.timers
    watch.tell(ev.CoreTunnels(watch.model.core, 1))
    watch.expect(State.VERIFYING)


def test_no_server_within_the_timeout_ends_the_core_and_says_so() -> None:
    watch = Watch().to_connecting()
    watch.tell(ev.TimerFired(Timer.ESTABLISH))
    assert (watch.model.state, watch.model.reason) == (State.LOCKED, Reason.NO_SERVER)
    assert "StopCore" in kinds(watch.effects)
    assert Timer.RETRY in watch.timers


@pytest.mark.defect(8)
@pytest.mark.requirement("R6")
@pytest.mark.parametrize("way", ["to_connecting", "to_verifying", "to_open"])
def test_another_uplink_ends_the_core_before_a_new_one_is_started(way: str) -> None:
    watch: Watch = getattr(Watch(), way)()
    watch.tell(see(UPLINK_B))
    assert (watch.model.state, watch.model.reason) == (State.CONNECTING, Reason.UPLINK_CHANGED)
    done = kinds(watch.effects)
    assert done[0] == "CloseLease"
    assert done.index("StopCore") < done.index("ApplyPolicy") < done.index("StartCore")
    assert StopCore(graceful=False) in watch.effects


@pytest.mark.requirement("R6")
def test_the_same_uplink_seen_again_is_no_transition() -> None:
    watch = Watch().to_open()
    watch.tell(see(UPLINK_A))
    assert (watch.model.state, watch.effects) == (State.OPEN, ())


@pytest.mark.requirement("R6")
def test_no_uplink_locks_and_the_next_one_connects() -> None:
    watch = Watch().to_open()
    watch.tell(see())
    assert (watch.model.state, watch.model.reason) == (State.LOCKED, Reason.NO_UPLINK)
    watch.tell(see(UPLINK_A))
    watch.expect(State.CONNECTING)


@pytest.mark.requirement("R3", "R17")
def test_the_users_stop_locks_and_is_remembered() -> None:
    watch = Watch().to_open()
    watch.tell(ev.UserStop())
    assert (watch.model.state, watch.model.reason) == (State.LOCKED, Reason.STOPPED_BY_USER)
    assert watch.effects[0] == CloseLease()
    assert StopCore(graceful=True) in watch.effects
    assert watch.stored == [Intent.STOPPED]


@pytest.mark.defect(1)
def test_stopped_stays_stopped_whatever_else_happens() -> None:
    watch = Watch().to_open()
    watch.tell(ev.UserStop())
    for event in (
        see(),
        see(UPLINK_B),
        configure(300),
        ev.TimerFired(Timer.RETRY),
        ev.LockBroken("flushed"),
        ev.EnforcementFailed("refused"),
        ev.TimerFired(Timer.RETRY),
        ev.TunBroken("gone"),
    ):
        watch.tell(event)
        watch.expect(State.LOCKED)
        assert "StartCore" not in kinds(watch.effects)


def test_start_after_a_stop_connects_and_is_remembered() -> None:
    watch = Watch().to_open()
    watch.tell(ev.UserStop())
    watch.tell(ev.UserStart())
    watch.expect(State.CONNECTING)
    assert watch.effects[:2] == (CloseLease(), StoreIntent(Intent.CONNECTED))


def test_start_while_it_is_connected_changes_nothing() -> None:
    watch = Watch().to_open()
    assert watch.tell(ev.UserStart()) == ()
    watch.expect(State.OPEN)


def test_start_while_it_waits_does_not_wait_any_longer() -> None:
    watch = Watch().to_connecting()
    watch.tell(ev.CoreExited(watch.model.core, "code 1"))
    watch.tell(ev.UserStart())
    watch.expect(State.CONNECTING)


def test_a_restart_takes_a_new_core() -> None:
    watch = Watch().to_open()
    watch.tell(ev.UserRestart())
    assert (watch.model.state, watch.model.reason) == (State.CONNECTING, Reason.RESTARTING)
    assert watch.effects[0] == CloseLease()
    assert StartCore(2) in watch.effects


@pytest.mark.requirement("R1")
@pytest.mark.parametrize("way", ["to_connecting", "to_verifying", "to_open"])
def test_a_bad_configuration_locks_until_there_is_a_good_one(way: str) -> None:
    watch: Watch = getattr(Watch(), way)()
    watch.tell(ev.SettingsBad("line 3"))
    assert (watch.model.state, watch.model.reason, watch.model.detail) == (State.FAILED, Reason.BAD_CONFIG, "line 3")
    for event in (ev.UserStart(), ev.UserRestart(), see(UPLINK_B), ev.TimerFired(Timer.RETRY)):
        watch.tell(event)
        watch.expect(State.FAILED)
        assert watch.model.detail == "line 3"
    watch.tell(configure(300))
    watch.expect(State.CONNECTING)


@pytest.mark.parametrize("kind", [ev.UserStart, ev.UserRestart])
@pytest.mark.parametrize("stopped", [False, True])
def test_a_corrected_configuration_counts_with_the_next_command(
    kind: type[ev.UserStart | ev.UserRestart], *, stopped: bool
) -> None:
    watch = Watch().to_open()
    watch.tell(ev.SettingsBad("line 3"))
    if stopped:
        watch.tell(ev.UserStop())
    good = Settings(socks_port=2000)
    watch.tell(kind(good))
    watch.expect(State.CONNECTING)
    assert watch.model.settings == good
    assert watch.stored[-1:] == [Intent.CONNECTED]


@pytest.mark.parametrize("way", ["to_connecting", "to_verifying", "to_open"])
def test_start_begins_again_only_if_the_configuration_is_another_one(way: str) -> None:
    watch: Watch = getattr(Watch(), way)()
    before = watch.model
    assert watch.tell(ev.UserStart(before.settings)) == ()
    assert watch.model.state is before.state
    changed = replace(before.settings, egress_region="CA")
    watch.tell(ev.UserStart(changed))
    watch.expect(State.CONNECTING)
    assert watch.model.core == before.core + 1, "the core still has the previous configuration"
    assert watch.model.settings == changed


def test_a_rule_that_leads_around_the_tunnel_has_a_reason_of_its_own() -> None:
    watch = Watch().to_open()
    watch.tell(ev.EnforcementFailed("IPv4 rule 5069", led_around=True))
    assert (watch.model.state, watch.model.reason) == (State.LOCKED, Reason.LED_AROUND)


def test_openings_that_fail_one_after_the_other_come_ever_more_slowly() -> None:
    """Each follows a verification that succeeded, which is no reason to retry at once."""
    watch = Watch().to_open()
    pauses = []
    for _ in range(TROUBLES_AT_ONCE + 4):
        watch.tell(ev.EnforcementFailed("refused"))
        pauses.append(watch.timers[Timer.RETRY])
        watch.tell(ev.TimerFired(Timer.RETRY))
        watch.tell(ev.CoreTunnels(watch.model.core, 1))
        watch.tell(ev.Verified(watch.model.verification))
        watch.expect(State.OPEN)
    assert pauses == sorted(pauses)
    assert pauses[-1] > 4 * pauses[0]


@pytest.mark.parametrize("silent", [False, True])
def test_a_tunnel_that_stays_silent_and_the_users_restart_take_a_new_tun(silent: bool) -> None:
    watch = Watch().to_verifying()
    if silent:
        for _ in range(VERIFICATIONS_PER_CORE):
            watch.tell(ev.VerificationFailed(watch.model.verification, "no answer"))
    else:
        watch.tell(ev.UserRestart())
    assert ReplaceTun() in watch.effects


@pytest.mark.requirement("B3")
@pytest.mark.parametrize("event", [ev.LockBroken("flushed"), ev.AmendmentRefused()], ids=name_event)
def test_a_broken_lock_while_open_is_put_right_and_verified_before_it_opens_again(event: Event) -> None:
    watch = Watch().to_open()
    watch.tell(event)
    watch.expect(State.VERIFYING)
    assert kinds(watch.effects) == ["CloseLease", "CancelTimers", "ApplyPolicy", "ArmTimer", "Verify"]
    watch.tell(ev.Verified(watch.model.verification))
    watch.expect(State.OPEN)


@pytest.mark.requirement("B3")
@pytest.mark.parametrize("event", [ev.LockBroken("flushed"), ev.AmendmentRefused()], ids=name_event)
def test_a_broken_lock_while_locked_or_connecting_is_put_right_in_place(event: Event) -> None:
    for watch, state in ((Watch(), State.LOCKED), (Watch().to_connecting(), State.CONNECTING)):
        assert watch.tell(event) == (ApplyPolicy(state),)
        assert watch.model.state is state


def test_a_tunnel_that_falls_silent_is_closed_and_another_core_turns_to_other_servers_at_once() -> None:
    watch = Watch().to_open()
    watch.tell(ev.TunnelSilent("no answer"))
    assert watch.effects[0] == CloseLease()
    assert (watch.model.state, watch.model.reason) == (State.CONNECTING, Reason.TUNNEL_SILENT)
    assert {"StopCore", "StartCore"} <= set(kinds(watch.effects))


def test_a_tunnel_that_carries_nothing_is_verified_again_and_given_up_after_some_failures() -> None:
    watch = Watch().to_verifying()
    for _ in range(VERIFICATIONS_PER_CORE - 1):
        watch.tell(ev.VerificationFailed(watch.model.verification, "no answer"))
        watch.expect(State.VERIFYING)
    watch.tell(ev.VerificationFailed(watch.model.verification, "no answer"))
    assert (watch.model.state, watch.model.reason) == (State.LOCKED, Reason.TUNNEL_SILENT)
    assert "StopCore" in kinds(watch.effects)


@pytest.mark.requirement("R1")
def test_rules_that_did_not_load_are_not_tried_again_at_once() -> None:
    watch = Watch().to_open()
    watch.tell(ev.EnforcementFailed("refused"))
    assert (watch.model.state, watch.model.reason) == (State.LOCKED, Reason.LOCK_FAILED)
    assert watch.effects[0] == CloseLease()
    assert "ApplyPolicy" not in kinds(watch.effects)
    assert retry_delay(watch) == FIRST_RETRY_SECONDS


@pytest.mark.parametrize(("taken", "reason"), [(True, Reason.TUN_TAKEN), (False, Reason.TUN_FAILED)])
def test_a_tun_that_was_taken_away_is_not_called_one_that_cannot_be_made(taken: bool, reason: Reason) -> None:
    watch = Watch().to_open()
    watch.tell(ev.TunBroken("x", taken=taken))
    assert watch.model.reason is reason


def test_a_tun_that_is_gone_while_open_takes_a_new_core_with_it() -> None:
    watch = Watch().to_open()
    watch.tell(ev.TunBroken("deleted"))
    done = kinds(watch.effects)
    watch.expect(State.CONNECTING)
    assert done.index("StopCore") < done.index("ApplyPolicy") < done.index("StartCore")


@pytest.mark.parametrize("state", State)
def test_a_move_that_the_table_does_not_allow_is_a_defect_and_not_made(state: State) -> None:
    for target in set(State) - LEGAL_MOVES[state]:
        with pytest.raises(IllegalMove):
            Plan(Model(state=state)).move(target, Reason.STARTING)


def test_only_verifying_leads_to_open() -> None:
    assert {state for state, targets in LEGAL_MOVES.items() if State.OPEN in targets} == {State.VERIFYING}


# -- sleep ------------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R3", "R6", "R17")
@pytest.mark.parametrize("way", ["to_connecting", "to_verifying", "to_open"])
def test_before_sleep_it_is_locked_and_the_core_is_ended(way: str) -> None:
    watch: Watch = getattr(Watch(), way)()
    watch.tell(ev.SleepComing())
    assert (watch.model.state, watch.model.reason) == (State.LOCKED, Reason.SLEEPING)
    assert StopCore(graceful=False) in watch.effects
    assert watch.timers == {Timer.WAKE: WAKE_SECONDS}


@pytest.mark.requirement("R6", "R17")
@pytest.mark.parametrize(
    "event",
    [
        see(UPLINK_B),
        ev.UserStart(),
        ev.UserRestart(),
        configure(300),
        ev.AmendmentRefused(),
        ev.LockBroken("flushed"),
        ev.TimerFired(Timer.RETRY),
        ev.CoreTunnels(1, 1),
    ],
    ids=name_event,
)
def test_whatever_happens_between_the_word_of_sleep_and_the_waking_starts_no_core(event: Event) -> None:
    watch = Watch().to_open()
    watch.tell(ev.SleepComing())
    watch.tell(event)
    watch.expect(State.LOCKED)
    assert "StartCore" not in kinds(watch.effects)


@pytest.mark.requirement("R6", "R17")
def test_after_sleep_a_new_core_connects_on_whatever_network_is_there_now() -> None:
    watch = Watch().to_open()
    watch.tell(ev.SleepComing())
    watch.tell(see(UPLINK_B))
    watch.tell(ev.Woke())
    assert (watch.model.state, watch.model.reason, watch.model.uplink) == (State.CONNECTING, Reason.WOKE, UPLINK_B)
    assert StartCore(2) in watch.effects


def test_after_sleep_without_a_network_it_waits_for_one() -> None:
    watch = Watch().to_open()
    watch.tell(ev.SleepComing())
    watch.tell(see())
    watch.tell(ev.Woke())
    assert (watch.model.state, watch.model.reason) == (State.LOCKED, Reason.NO_UPLINK)
    watch.tell(see(UPLINK_A))
    watch.expect(State.CONNECTING)


@pytest.mark.requirement("R6")
def test_a_sleep_that_nobody_announced_ends_what_was_open_before_it() -> None:
    watch = Watch().to_open()
    watch.tell(ev.Woke())
    assert watch.effects[0] == CloseLease()
    assert (watch.model.state, watch.model.reason) == (State.CONNECTING, Reason.WOKE)
    assert watch.running == 2


def test_a_sleep_that_was_announced_and_never_came_is_given_up_for() -> None:
    watch = Watch().to_open()
    watch.tell(ev.SleepComing())
    watch.tell(ev.TimerFired(Timer.WAKE))
    watch.expect(State.CONNECTING)


def test_waking_does_not_wait_for_a_retry_that_was_due_an_age_ago() -> None:
    watch = Watch().to_connecting()
    for _ in range(8):
        fail_to_connect(watch)
    watch.tell(ev.CoreExited(watch.model.core, "code 1"))
    watch.tell(ev.Woke())
    watch.expect(State.CONNECTING)
    assert fail_to_connect(watch) == FIRST_RETRY_SECONDS


def test_stopped_by_the_user_stays_stopped_over_a_sleep() -> None:
    watch = Watch().to_open()
    for event in (ev.UserStop(), ev.SleepComing(), ev.Woke()):
        watch.tell(event)
        assert (watch.model.state, watch.model.reason) == (State.LOCKED, Reason.STOPPED_BY_USER)


# -- nothing in a tight loop ------------------------------------------------------------------------------------------


def reopen(watch: Watch) -> None:
    watch.tell(ev.CoreTunnels(watch.model.core, 1))
    watch.tell(ev.Verified(watch.model.verification))
    watch.expect(State.OPEN)


def pauses(watch: Watch, event: str, times: int) -> list[float]:
    """Reopen after each trouble; returns how long each retry had to wait."""
    found = []
    for _ in range(times):
        if event == "the core ends":
            watch.tell(ev.CoreExited(watch.model.core, "code 0"))
        elif event == "the tunnel flaps":
            watch.tell(ev.CoreTunnels(watch.model.core, 0))
        elif event == "the TUN is deleted":
            watch.tell(ev.TunBroken("gone"))
        else:
            watch.tell(see())
            watch.tell(see(UPLINK_A))
        found.append(watch.timers.get(Timer.RETRY, 0.0))
        if found[-1]:
            watch.expect(State.LOCKED)
            watch.tell(ev.TimerFired(Timer.RETRY))
        watch.expect(State.CONNECTING)
        reopen(watch)
    return found


TROUBLES = ["the core ends", "the tunnel flaps", "the TUN is deleted"]
FLAPS = "the uplink flaps"


@pytest.mark.requirement("R1", "R6")
@pytest.mark.parametrize("what", TROUBLES)
def test_trouble_right_after_each_opening_is_answered_ever_more_slowly(what: str) -> None:
    found = pauses(Watch().to_open(), what, 20)
    at_once = found.count(0.0)
    assert at_once == TROUBLES_AT_ONCE
    assert found[:at_once] == [0.0] * at_once
    assert found[at_once : at_once + 5] == [0.5, 1, 2, 4, 8]
    assert set(found[at_once + 5 :]) == {LAST_UNREST_SECONDS}


@pytest.mark.parametrize("what", TROUBLES)
@pytest.mark.parametrize("timer", [Timer.HELD, Timer.CALM])
def test_after_an_opening_that_held_trouble_is_answered_at_once_again(what: str, timer: Timer) -> None:
    watch = Watch().to_open()
    pauses(watch, what, 9)
    assert (watch.timers[Timer.HELD], watch.timers[Timer.CALM]) == (HELD_SECONDS, CALM_SECONDS)
    watch.tell(ev.TimerFired(timer))
    assert pauses(watch, what, 1) == [0.0]


@pytest.mark.requirement("R6")
def test_a_network_that_changes_often_is_waited_for_as_long_each_time_and_no_longer() -> None:
    """A change costs only the core's own connection time: only failed openings make the wait grow."""
    found = pauses(Watch().to_open(), FLAPS, 100)
    assert found == [0.0] * CHANGES_AT_ONCE + [SETTLE_SECONDS] * (100 - CHANGES_AT_ONCE)


def test_after_a_calm_while_a_change_of_network_is_answered_at_once_again() -> None:
    watch = Watch().to_open()
    pauses(watch, FLAPS, 9)
    watch.tell(ev.TimerFired(Timer.HELD))
    assert pauses(watch, FLAPS, 1) == [SETTLE_SECONDS], "a tunnel that held says nothing about the network"
    watch.tell(ev.TimerFired(Timer.CALM))
    assert pauses(watch, FLAPS, 1) == [0.0]


def test_changes_of_network_do_not_make_a_trouble_wait_nor_the_other_way_round() -> None:
    watch = Watch().to_open()
    pauses(watch, FLAPS, 30)
    assert pauses(watch, "the core ends", 1) == [0.0]
    watch = Watch().to_open()
    pauses(watch, "the core ends", 30)
    assert pauses(watch, FLAPS, 1) == [0.0]


@pytest.mark.requirement("R6")
def test_an_uplink_that_flaps_faster_than_the_pause_starts_no_core_at_all() -> None:
    watch = Watch().to_open()
    for _ in range(CHANGES_AT_ONCE):
        watch.tell(see())
        watch.tell(see(UPLINK_A))
    cores = watch.model.core
    for _ in range(100):
        watch.tell(see(UPLINK_A))
        watch.tell(see())
        watch.tell(see(UPLINK_A))
        assert (watch.model.state, watch.model.reason) == (State.LOCKED, Reason.UNSTABLE)
        assert watch.timers == {Timer.RETRY: SETTLE_SECONDS}
    assert watch.model.core == cores


def test_the_users_restart_does_not_wait_for_calm() -> None:
    watch = Watch().to_open()
    pauses(watch, "the core ends", 9)
    watch.tell(ev.CoreExited(watch.model.core, "code 0"))
    watch.expect(State.LOCKED)
    watch.tell(ev.UserRestart())
    watch.expect(State.CONNECTING)


# -- what is wrong, told while it is ----------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", [Reason.UPSTREAM_PROXY, Reason.REGION, Reason.NO_SERVER_LIST, Reason.CAPTIVE_PORTAL])
def test_what_is_wrong_while_connecting_is_reported_at_once_and_taken_back_when_it_is_over(reason: Reason) -> None:
    watch = Watch().to_connecting()
    watch.tell(ev.CoreFault(watch.model.core, reason))
    assert (watch.model.state, watch.model.reason, watch.effects) == (State.CONNECTING, reason, ())
    watch.tell(ev.CoreFault(watch.model.core, None))
    assert (watch.model.reason, watch.model.fault) == (Reason.CONNECTING, None)


def test_a_core_that_gets_nowhere_is_looked_into_again_and_again_and_its_end_says_how_far_it_came() -> None:
    watch = Watch().to_connecting()
    for detail in ("3 tried", "5 tried"):
        watch.tell(ev.TimerFired(Timer.SLOW))
        assert kinds(watch.effects) == ["FindCause", "ArmTimer"]
        watch.tell(ev.CoreFault(watch.model.core, Reason.SLOW, detail))
        assert (watch.model.reason, watch.model.detail) == (Reason.SLOW, detail)
    watch.tell(ev.TimerFired(Timer.ESTABLISH))
    assert (watch.model.reason, watch.model.detail) == (Reason.NO_SERVER, "5 tried")


def test_a_core_that_says_nothing_any_more_while_connecting_is_replaced() -> None:
    watch = Watch().to_connecting()
    watch.tell(ev.TimerFired(Timer.QUIET))
    assert (watch.model.state, watch.model.reason) == (State.LOCKED, Reason.CORE_HANGS)
    assert "StopCore" in kinds(watch.effects)
    assert Timer.RETRY in watch.timers


def test_a_start_that_failed_has_its_own_reason() -> None:
    watch = Watch().to_connecting()
    watch.tell(ev.CoreStartFailed(watch.model.core, "No space left on device", Reason.DISK))
    assert (watch.model.state, watch.model.reason) == (State.LOCKED, Reason.DISK)
    assert Timer.RETRY in watch.timers


@pytest.mark.requirement("R1", "R3")
@pytest.mark.parametrize("way", ["to_connecting", "to_verifying", "to_open"])
def test_a_fight_over_the_lock_is_sat_out_locked_and_longer_each_time(way: str) -> None:
    watch: Watch = getattr(Watch(), way)()
    waits = []
    for _ in range(7):
        watch.tell(ev.LockFought("ufw (pid 7)"))
        assert (watch.model.state, watch.model.reason, watch.model.detail) == (
            State.LOCKED,
            Reason.FIGHT,
            "ufw (pid 7)",
        )
        assert watch.running is None
        waits.append(watch.timers[Timer.RETRY])
        watch.tell(ev.TimerFired(Timer.RETRY))
        assert (watch.model.state, watch.model.reason) == (State.CONNECTING, Reason.CONNECTING)
    assert waits == [2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]


@pytest.mark.requirement("R1", "R3")
@pytest.mark.parametrize(
    "event", [ev.LockFought("nft (pid 8)"), ev.LockBroken("x"), ev.TunBroken("x"), ev.EnforcementFailed("x")]
)
def test_in_a_fight_no_policy_is_loaded_again_with_each_blow_and_its_end_is_still_waited_for(event: Event) -> None:
    watch = Watch().to_open()
    watch.tell(ev.LockFought("ufw (pid 7)"))
    before = watch.model
    watch.tell(event)
    assert watch.model == before
    assert "ApplyPolicy" not in kinds(watch.effects)
    assert watch.timers == {Timer.RETRY: 2.0}


WHAT_LOCKS: tuple[Event, ...] = (
    ev.LockFought("ufw (pid 7)"),
    ev.EnforcementFailed("x"),
    ev.TunBroken("x", taken=True),
    ev.PartFailed("an effect", "x"),
    ev.TunnelSilent("x"),
    ev.SleepComing(),
)


@pytest.mark.requirement("B3")
@pytest.mark.parametrize("event", [ev.EnforcementFailed("x"), ev.TunBroken("x"), ev.PartFailed("an effect", "x")])
@pytest.mark.parametrize("times", [1, 5])
@pytest.mark.parametrize("trouble", WHAT_LOCKS, ids=name_event)
@pytest.mark.parametrize("reach", ["to_connecting", "to_verifying", "to_open"])
def test_a_wait_whose_locking_failed_before_its_timer_was_armed_ends_all_the_same(
    reach: str, trouble: Event, times: int, event: Event
) -> None:
    """Each event is what the runner posts for an effect that failed; the effects after that one are not carried out."""
    watch: Watch = getattr(Watch(), reach)()
    for _ in range(times):
        watch.tell(trouble)
    if watch.model.state is State.LOCKED:
        watch.timers.clear()
    watch.tell(event)
    assert watch.timers


def test_what_a_user_stopped_stays_stopped_after_a_fight() -> None:
    watch = Watch().to_open()
    watch.tell(ev.UserStop())
    watch.tell(ev.LockFought("ufw (pid 7)"))
    assert watch.model.reason is Reason.FIGHT
    watch.tell(ev.TimerFired(Timer.RETRY))
    assert (watch.model.state, watch.model.reason) == (State.LOCKED, Reason.STOPPED_BY_USER)


@pytest.mark.parametrize("event", [ev.TimerFired(Timer.CALM), ev.UserRestart()], ids=name_event)
def test_fights_are_forgotten_when_it_was_calm_or_the_user_says_so(event: Event) -> None:
    watch = Watch().to_open()
    watch.tell(ev.LockFought("ufw (pid 7)"))
    watch.tell(ev.TimerFired(Timer.RETRY))
    watch.tell(event)
    assert watch.model.fights == 0


@pytest.mark.requirement("R6")
@pytest.mark.parametrize("reach", ["to_connecting", "to_verifying", "to_open"])
def test_a_neighbourhood_that_changes_amends_the_rules_and_moves_nothing(reach: str) -> None:
    watch: Watch = getattr(Watch(), reach)()
    before = watch.model
    seen = see(*before.choices, on_link=NEIGHBOURS)
    assert watch.tell(seen) == (AmendPolicy(before.state),)
    assert watch.model == replace(before, seen=seen.seen)
    assert watch.tell(seen) == (), "seen again is no change"


@pytest.mark.requirement("B4")
@pytest.mark.parametrize("reach", ["to_connecting", "to_verifying", "to_open"])
def test_a_wire_that_no_rule_can_name_gets_its_filter_and_moves_nothing(reach: str) -> None:
    watch: Watch = getattr(Watch(), reach)()
    before = watch.model
    seen = see(*before.choices)
    odd = replace(seen, seen=replace(seen.seen, odd_wires=("a b",)))
    assert watch.tell(odd) == (AmendPolicy(before.state),)
    assert watch.model == replace(before, seen=odd.seen)
    assert watch.tell(odd) == (), "seen again is no change"


@pytest.mark.requirement("R6", "B4")
def test_a_wire_that_comes_is_guarded_in_every_state_and_what_was_open_is_verified_again() -> None:
    for reach, expected in (
        ("to_connecting", State.CONNECTING),
        ("to_verifying", State.VERIFYING),
        ("to_open", State.VERIFYING),
    ):
        watch: Watch = getattr(Watch(), reach)()
        watch.tell(see(UPLINK_A, wires="eth0 eth1 eth7"))
        watch.expect(expected)
        assert ApplyPolicy(expected) in watch.effects
    watch = Watch()
    watch.tell(see(wires="eth7"))
    assert watch.effects == (ApplyPolicy(State.LOCKED),)


@pytest.mark.requirement("R6")
def test_an_uplink_that_the_kernel_calls_lost_is_a_transition_even_if_the_next_look_finds_it() -> None:
    watch = Watch().to_open()
    watch.tell(ev.UplinkLost())
    assert (watch.model.state, watch.model.reason) == (State.LOCKED, Reason.NO_UPLINK)
    watch.tell(see(UPLINK_A))
    watch.expect(State.CONNECTING)
