# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""When a rescue is made, and that nothing of it outlives CONNECTING. `Watch` checks each step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import MappingProxyType

import pytest
from tests.unit.state_machine_watch import NEIGHBOURS, UPLINK_A, UPLINK_B, Watch, configure, kinds, see

from psiphon_vpn.policy.model import State
from psiphon_vpn.service import events as ev
from psiphon_vpn.service.effects import ApplyPolicy, ArmTimer, StartRescue, StopRescue
from psiphon_vpn.service.events import Event, Intent, Timer
from psiphon_vpn.service.model import RESCUE_EVERY, RESCUES_AT_FIRST, Model, is_rescue_due
from psiphon_vpn.service.reasons import Reason

LOOK = ev.TimerFired(Timer.RESCUE)
HELPFUL = {
    Reason.SLOW, Reason.NO_SERVER, Reason.NO_SERVER_LIST, Reason.NO_IPV4, Reason.NO_LIST, Reason.UPSTREAM_PROXY,
    *(reason for reason in Reason if reason.startswith("list_")),
}  # fmt: skip
"""What may be known of the core's attempts when a newer list may help."""


def rescuing() -> Watch:
    """CONNECTING, with a rescue under way."""
    watch = Watch().to_connecting()
    watch.tell(LOOK)
    assert watch.rescue == 1
    return watch


def test_a_core_that_is_given_no_server_in_time_has_a_newer_list_asked_for() -> None:
    watch = Watch().to_connecting()
    assert watch.rescue is None
    effects = watch.tell(LOOK)
    assert [effect for effect in effects if not isinstance(effect, ArmTimer)] == [StartRescue(1)]
    watch.expect(State.CONNECTING)
    assert watch.running == 1, "the core goes on trying"


def test_a_rescue_that_found_nothing_changes_nothing() -> None:
    watch = rescuing()
    assert watch.tell(ev.RescueEnded(1, found=False)) == ()
    watch.expect(State.CONNECTING)


PROXY = "http://192.0.2.7:3128"


def by_proxy(proxy: str | None) -> Event:
    return ev.SettingsGood(dataclasses.replace(configure(0).settings, upstream_proxy=proxy))


def proxied() -> Watch:
    """CONNECTING through an upstream proxy that failed a rescue."""
    watch = Watch().to_connecting()
    watch.tell(by_proxy(PROXY))
    watch.tell(LOOK)
    watch.tell(ev.RescueEnded(1, found=False, proxy_trouble="it cannot be reached"))
    watch.expect(State.CONNECTING)
    assert (watch.model.reason, watch.model.detail) == (Reason.UPSTREAM_PROXY, "it cannot be reached")
    return watch


def test_an_upstream_proxy_that_does_nothing_is_the_reason_until_a_rescue_gets_past_it() -> None:
    """A core that knows no server does not use its proxy, so it cannot report its failure."""
    watch = proxied()
    watch.tell(ev.CoreFault(watch.model.core, Reason.NO_LIST))
    assert (watch.model.reason, watch.model.detail) == (Reason.UPSTREAM_PROXY, "it cannot be reached")
    watch.tell(ev.CoreFault(watch.model.core, None))
    assert watch.model.reason is Reason.UPSTREAM_PROXY
    watch.tell(ev.CoreFault(watch.model.core, Reason.NO_LIST))
    for _ in range(RESCUES_AT_FIRST[1] - 1):
        watch.tell(LOOK)
    assert watch.rescue == 2, "it is tried again"
    watch.tell(ev.RescueEnded(2, found=False))
    assert (watch.model.reason, watch.model.detail) == (Reason.NO_LIST, "")


@pytest.mark.parametrize("fault", [Reason.REGION, Reason.CLOCK, Reason.CAPTIVE_PORTAL, Reason.DISK])
def test_what_is_wrong_here_is_said_before_the_proxy(fault: Reason) -> None:
    watch = proxied()
    watch.tell(ev.CoreFault(watch.model.core, fault))
    assert watch.model.reason is fault


@pytest.mark.parametrize("proxy", [None, "socks5://192.0.2.8:1080"])
def test_another_proxy_or_none_is_not_blamed_for_it(proxy: str | None) -> None:
    watch = proxied()
    watch.tell(by_proxy(proxy))
    watch.tell(ev.CoreFault(watch.model.core, Reason.NO_LIST))
    assert watch.model.reason is Reason.NO_LIST


def test_a_tunnel_clears_the_proxy() -> None:
    watch = proxied()
    watch.tell(ev.CoreTunnels(watch.model.core, 1))
    watch.expect(State.VERIFYING)
    watch.tell(ev.CoreTunnels(watch.model.core, 0))
    watch.expect(State.CONNECTING)
    watch.tell(ev.CoreFault(watch.model.core, Reason.SLOW))
    assert watch.model.reason is Reason.SLOW


def test_a_rescue_that_found_a_list_starts_a_core_that_gets_it() -> None:
    watch = rescuing()
    watch.tell(ev.RescueEnded(1, found=True))
    watch.expect(State.CONNECTING)
    assert (watch.running, watch.model.reason) == (2, Reason.NEW_LIST)


def test_the_end_of_another_rescue_changes_nothing() -> None:
    watch = rescuing()
    for number in (0, 2):
        before = watch.model
        assert watch.tell(ev.RescueEnded(number, found=True)) == ()
        assert watch.model == before
    watch.tell(ev.RescueEnded(1, found=False))
    assert watch.tell(ev.RescueEnded(1, found=True)) == ()


LEAVING: list[tuple[str, Callable[[Watch], Event]]] = [
    ("stop", lambda _: ev.UserStop()),
    ("restart", lambda _: ev.UserRestart()),
    ("sleep", lambda _: ev.SleepComing()),
    ("woke", lambda _: ev.Woke()),
    ("settings", lambda _: configure(300)),
    ("switched off", lambda _: configure(300, list_rescue=False)),
    ("bad settings", lambda _: ev.SettingsBad("line 3")),
    ("network", lambda _: see(UPLINK_B)),
    ("no network", lambda _: see()),
    ("carrier", lambda _: ev.UplinkLost()),
    ("tunnel", lambda watch: ev.CoreTunnels(watch.model.core, 1)),
    ("core ended", lambda watch: ev.CoreExited(watch.model.core, "code 0")),
    ("core not started", lambda watch: ev.CoreStartFailed(watch.model.core, "gone")),
    ("fight", lambda _: ev.LockFought("ufw (pid 7)")),
    ("rules refused", lambda _: ev.EnforcementFailed("refused")),
    ("TUN", lambda _: ev.TunBroken("gone")),
    ("part", lambda _: ev.PartFailed("watch of links", "OSError")),
    ("establish", lambda _: ev.TimerFired(Timer.ESTABLISH)),
    ("quiet", lambda _: ev.TimerFired(Timer.QUIET)),
]


@pytest.mark.requirement("R1", "R3", "R6")
@pytest.mark.parametrize(("name", "make"), LEAVING, ids=[name for name, _ in LEAVING])
def test_every_move_ends_a_rescue_before_it_loads_anything(name: str, make: Callable[[Watch], Event]) -> None:
    watch = rescuing()
    effects = watch.tell(make(watch))
    assert watch.rescue is None, name
    loads = [number for number, effect in enumerate(effects) if isinstance(effect, ApplyPolicy)]
    assert not loads or effects.index(StopRescue()) < loads[0]


@pytest.mark.requirement("R3")
@pytest.mark.parametrize("event", [see(UPLINK_A, on_link=NEIGHBOURS), ev.LockBroken("flushed"), ev.AmendmentRefused()])
def test_what_leaves_the_core_alone_leaves_the_rescue_alone(event: Event) -> None:
    watch = rescuing()
    watch.tell(event)
    watch.expect(State.CONNECTING)
    assert watch.rescue == 1


@pytest.mark.requirement("R1", "R3")
@pytest.mark.parametrize("state", ["to_verifying", "to_open", "stopped", "failed", "asleep", "no uplink"])
def test_in_no_other_state_is_a_rescue_made(state: str) -> None:
    watch = Watch()
    if state.startswith("to_"):
        getattr(watch, state)()
    else:
        watch.to_connecting()
        left: dict[str, Event] = {
            "stopped": ev.UserStop(),
            "failed": ev.SettingsBad("x"),
            "asleep": ev.SleepComing(),
            "no uplink": see(),
        }
        watch.tell(left[state])
    assert watch.model.state is not State.CONNECTING
    before = watch.model
    assert watch.tell(LOOK) == ()
    assert watch.model == before
    assert Timer.RESCUE not in watch.timers


@pytest.mark.requirement("R3")
def test_a_user_who_stopped_it_before_a_reboot_gets_no_rescue() -> None:
    watch = Watch(Model(intent=Intent.STOPPED))
    watch.tell(configure(300))
    watch.tell(see(UPLINK_A))
    watch.expect(State.LOCKED)
    assert watch.tell(LOOK) == ()


def test_the_setting_turns_it_off_and_so_does_a_server_that_the_user_named() -> None:
    watch = Watch().to_connecting()
    watch.tell(configure(300, list_rescue=False))
    for _ in range(40):
        watch.tell(LOOK)
    assert watch.rescue is None
    named = configure(300).settings
    target = MappingProxyType({"TargetServerEntry": "00" * 20})
    watch.tell(ev.SettingsGood(dataclasses.replace(named, core_advanced=target)))
    watch.expect(State.CONNECTING)
    for _ in range(40):
        watch.tell(LOOK)
    assert watch.rescue is None


@pytest.mark.parametrize("fault", [reason for reason in Reason if reason is not Reason.FIGHT])
def test_a_rescue_is_made_only_where_a_newer_list_may_help(fault: Reason) -> None:
    watch = Watch().to_connecting()
    watch.tell(ev.CoreFault(watch.model.core, fault))
    watch.tell(LOOK)
    assert (watch.rescue is not None) == (fault in HELPFUL)


def test_rescues_become_ever_rarer_and_core_after_core_counts_on() -> None:
    watch = Watch().to_connecting()
    made = []
    for look in range(1, 2 * RESCUE_EVERY + 1):
        if look % 15 == 0:
            watch.tell(ev.TimerFired(Timer.ESTABLISH))
            watch.tell(ev.TimerFired(Timer.RETRY))
        if "StartRescue" in kinds(watch.tell(LOOK)):
            made.append(look)
            watch.tell(ev.RescueEnded(watch.model.rescue, found=False))
    assert made == [*RESCUES_AT_FIRST, RESCUE_EVERY, 2 * RESCUE_EVERY]
    assert not is_rescue_due(0)


def test_one_that_never_comes_to_its_end_is_given_up_for_the_next() -> None:
    watch = rescuing()
    for _ in range(RESCUES_AT_FIRST[1] - RESCUES_AT_FIRST[0]):
        watch.tell(LOOK)
    assert watch.rescue == 2


def test_a_tunnel_and_a_restart_count_from_zero_again() -> None:
    watch = rescuing()
    watch.tell(ev.CoreTunnels(watch.model.core, 1))
    watch.tell(ev.Verified(watch.model.verification))
    watch.tell(ev.CoreTunnels(watch.model.core, 0))
    watch.expect(State.CONNECTING)
    assert "StartRescue" in kinds(watch.tell(LOOK))
    watch.tell(LOOK)
    watch.tell(ev.UserRestart())
    assert "StartRescue" in kinds(watch.tell(LOOK))
