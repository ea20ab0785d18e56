# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""CONNECTING: a core runs and may use the wire; it has no tunnel yet."""

from typing import assert_never

from psiphon_vpn.network.choice import find_patience
from psiphon_vpn.service import any_state, moves
from psiphon_vpn.service import events as ev
from psiphon_vpn.service.events import Timer
from psiphon_vpn.service.plan import Plan
from psiphon_vpn.service.reasons import Reason
from psiphon_vpn.service.states import with_core


def answer(plan: Plan, event: ev.Event) -> None:
    """Answer an event."""
    rest = with_core.answer(plan, event)
    match rest:
        case ev.AmendmentRefused() | ev.LockBroken():
            moves.load_again(plan)
        case ev.TimerFired(timer):
            _answer_timer(plan, timer)
        case ev.CoreExited():
            _lose_core(plan, rest)
        case ev.CoreFault(_, fault, detail):
            moves.show_fault(plan, fault, detail)
        case ev.CoreTunnels(_, count):
            plan.update(tunnels=count)
            if count >= 1:
                moves.verify(plan, Reason.TUNNEL_UP)
        case ev.RescueEnded():
            moves.end_rescue(plan, rest)
        case ev.Verified() | ev.VerificationFailed() | ev.TunnelSilent() | ev.LeaseLost():
            pass  # about a tunnel that was lost
        case None:
            pass  # answered above
        case _ as never:
            assert_never(never)


def _answer_timer(plan: Plan, timer: Timer) -> None:
    model = plan.model
    match timer:
        case Timer.RETRY:
            moves.begin(plan, model.reason, model.detail)
        case Timer.ESTABLISH:
            shown = model.detail if model.reason is model.fault else ""
            moves.retry_later(plan, moves.find_known_fault(model) or Reason.NO_SERVER, shown)
        case Timer.QUIET:
            moves.retry_later(plan, Reason.CORE_HANGS)
        case Timer.SLOW:
            moves.look_for_cause(plan)
        case Timer.GIVE_WAY:
            if moves.turn_to_another(plan):
                moves.begin(plan, Reason.UPLINK_BARREN)
            else:
                plan.arm(Timer.GIVE_WAY, find_patience(model.rounds))
        case Timer.RESCUE:
            moves.consider_rescue(plan)
        case Timer.CALM:
            any_state.count_from_zero(plan)
        case Timer.WAKE | Timer.VERIFICATION | Timer.RENEWAL | Timer.HELD:
            pass
        case _ as never:
            assert_never(never)


def _lose_core(plan: Plan, event: ev.CoreExited) -> None:
    if moves.find_known_fault(plan.model) is Reason.PORT_IN_USE and plan.model.proxy:
        # Any user can take the port of the proxy: go on without the proxy.
        plan.update(core_running=False)
        moves.connect(plan, Reason.CONNECTING, proxy=False)
    else:
        moves.lose_core(plan, event)
