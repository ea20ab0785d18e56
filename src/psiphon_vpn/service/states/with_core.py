# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Answers that the states with a core share (CONNECTING, VERIFYING, OPEN), and those with a tunnel. Pure."""

from psiphon_vpn.service import any_state, moves
from psiphon_vpn.service import events as ev
from psiphon_vpn.service.plan import Plan

Connecting = (
    ev.RulesEvent | ev.CoreExited | ev.CoreFault | ev.CoreTunnels | ev.TunnelEvent | ev.RescueEnded | ev.TimerFired
)
"""The events that CONNECTING itself answers."""
Tunnelled = ev.TunnelEvent | ev.TimerFired
"""The events that VERIFYING and OPEN themselves answer."""


def answer(plan: Plan, event: ev.Event, *, reload: any_state.Reload = moves.load_again) -> Connecting | None:
    """Answer an event that all states with a core answer alike.

    Returns:
        The event if the state has an answer of its own to it; None if it is answered.
    """
    rest = any_state.answer(plan, event, under_way=True, reload=reload)
    match rest:
        case ev.LockFought(culprit):
            moves.fight(plan, culprit)
        case ev.EnforcementFailed():
            moves.lose_enforcement(plan, rest)
        case ev.TunBroken():
            moves.lose_tun(plan, rest)
        case ev.PartFailed():
            moves.lose_part(plan, rest)
        case ev.SleepComing():
            moves.fall_asleep(plan)
        case ev.Woke():
            moves.wake(plan)
        case ev.CoreStartFailed():
            moves.miss_core(plan, rest)
        case ev.CoreRegion(_, region):
            plan.update(region=region)
        case _:
            return rest
    return None


def answer_with_tunnel(plan: Plan, event: ev.Event) -> Tunnelled | None:
    """Answer an event that both states with a tunnel answer alike. Returns as `answer` does."""
    rest = answer(plan, event, reload=moves.verify_rules)
    match rest:
        case ev.AmendmentRefused():
            moves.verify_rules(plan)
        case ev.LockBroken(detail):
            moves.verify_rules(plan, detail)
        case ev.CoreExited():
            moves.lose_core(plan, rest)
        case ev.CoreFault(_, fault):
            plan.update(fault=fault)
        case ev.CoreTunnels(_, count):
            plan.update(tunnels=count)
            if count < 1:
                moves.lose_tunnel(plan)
        case ev.RescueEnded():
            pass  # none runs: the move to this state ended it
        case _:
            return rest
    return None
