# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Answers that all states share: to the user's commands, the configuration, and the network. Pure."""

from collections.abc import Callable
from dataclasses import replace

from psiphon_vpn.config import Settings
from psiphon_vpn.network.choice import SocketUse, still_serves
from psiphon_vpn.network.observed import ObservedNetwork
from psiphon_vpn.policy.model import State
from psiphon_vpn.service.effects import AmendPolicy
from psiphon_vpn.service.events import (
    Event,
    Intent,
    NetworkSeen,
    SettingsBad,
    SettingsGood,
    StateEvent,
    UplinkLost,
    UserRestart,
    UserStart,
    UserStop,
)
from psiphon_vpn.service.model import settle_delay
from psiphon_vpn.service.moves import begin, choose_uplink, fail, forget_troubles, load_again, pause
from psiphon_vpn.service.plan import Plan
from psiphon_vpn.service.reasons import Reason

Reload = Callable[[Plan], None]
"""How a state loads rules that changed."""


def answer(plan: Plan, event: Event, *, under_way: bool, reload: Reload = load_again) -> StateEvent | None:
    """Answer an event that all states answer in the same way.

    Args:
        plan: takes the answer.
        event: any.
        under_way: whether the state is one of connecting, or of being connected.
        reload: how it puts changed rules into force.

    Returns:
        The event if the state has an answer of its own to it; None if it is answered.
    """
    match event:
        case UserStart(settings):
            changed = adopt_settings(plan, settings)
            (go_on if under_way and not changed else start)(plan)
        case UserStop():
            stop(plan)
        case UserRestart(settings):
            adopt_settings(plan, settings)
            restart(plan)
        case SettingsGood():
            take_settings(plan, event)
        case SettingsBad():
            refuse_settings(plan, event)
        case NetworkSeen():
            see_network(plan, event, reload)
        case UplinkLost():
            lose_uplink(plan, reload)
        case _:
            return event
    return None


def start(plan: Plan) -> None:
    """The user wants to be connected, and the service is not connecting yet."""
    forget_troubles(plan)
    plan.remember(Intent.CONNECTED)
    choose_uplink(plan)
    begin(plan, Reason.CONNECTING)


def go_on(plan: Plan) -> None:
    """The user wants to be connected, and the service is connecting or connected."""
    plan.update(failures=0, unrest=0, changes=0, fights=0)


def stop(plan: Plan) -> None:
    """The user wants to be disconnected."""
    plan.remember(Intent.STOPPED)
    begin(plan, Reason.STOPPED_BY_USER)


def restart(plan: Plan) -> None:
    """The user wants to begin from scratch."""
    forget_troubles(plan)
    plan.remember(Intent.CONNECTED)
    choose_uplink(plan)
    begin(plan, Reason.RESTARTING, anew=True)


def adopt_settings(plan: Plan, settings: Settings | None) -> bool:
    """Use a configuration for what begins now. Returns whether it is another one; None is none."""
    if settings is None or (plan.model.settings_good and settings == plan.model.settings):
        return False
    plan.update(settings_good=True, settings=settings)
    return True


def take_settings(plan: Plan, event: SettingsGood) -> None:
    """Begin again with the new configuration."""
    plan.update(settings_good=True, settings=event.settings, failures=0, unsuccessful=frozenset(), rounds=0)
    choose_uplink(plan)
    begin(plan, Reason.CONNECTING)


def refuse_settings(plan: Plan, event: SettingsBad) -> None:
    """Stay locked until a person corrects the configuration."""
    plan.update(settings_good=False, detail=event.detail)
    fail(plan, Reason.BAD_CONFIG, event.detail)


def count_from_zero(plan: Plan) -> None:
    """Nothing has gone wrong for a while: count troubles from zero again."""
    plan.update(unrest=0, changes=0, fights=0)


def hold(plan: Plan) -> None:
    """The opening has held: the next trouble is the first one again."""
    plan.update(unrest=0)


def see_network(plan: Plan, event: NetworkSeen, reload: Reload = load_again) -> None:
    """Answer a transition, or load the rules with what they name of the network."""
    _see(plan, event.seen, event.uses, reload)


def lose_uplink(plan: Plan, reload: Reload = load_again) -> None:
    """Proceed as if there were no way out; the next look at the network follows at once."""
    _see(plan, replace(plan.model.seen, uplinks=()), None, reload)


def _see(plan: Plan, seen: ObservedNetwork, uses: frozenset[SocketUse] | None, reload: Reload) -> None:
    before, uplink = plan.model.seen, plan.model.uplink_facts
    was = before.network
    plan.update(seen=seen)
    _judge_uplinks(plan, uses)
    if not plan.empty:
        return  # each transition applies a policy, with the present network
    if (was, before.odd_wires, uplink) == (seen.network, seen.odd_wires, plan.model.uplink_facts):
        return
    if (replace(was, on_link=seen.network.on_link), uplink) == (seen.network, plan.model.uplink_facts):
        plan.do(AmendPolicy(plan.model.state))
    else:
        reload(plan)


def _judge_uplinks(plan: Plan, uses: frozenset[SocketUse] | None) -> None:
    """Begin again if something that the core uses of the uplink is gone (R6)."""
    before = plan.model
    choose_uplink(plan)
    uplink = plan.model.uplink
    if uplink == before.uplink == before.uplink_at_start:
        return
    if uplink is not None and before.uplink_at_start is not None and still_serves(before.uplink_at_start, uplink, uses):
        return  # an addition is no transition
    if uplink is None and before.uplink_at_start is None:
        return
    plan.update(uplink_at_start=uplink, changes=before.changes + (uplink is not None))
    if before.state is State.FAILED or before.intent is Intent.STOPPED:
        load_again(plan)
        return
    plan.update(failures=0)
    delay = settle_delay(plan.model.changes)
    if delay and uplink is not None and not before.asleep and before.settings_good:
        pause(plan, Reason.UNSTABLE, "", delay)
    else:
        begin(plan, Reason.CONNECTING if before.uplink is None else Reason.UPLINK_CHANGED)
